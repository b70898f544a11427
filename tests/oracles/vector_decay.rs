//! Mechanisms with a decay per key channel.

use super::*;
use subquad::ops::Documents;
use subquad::ops::broadcast::add;
use subquad::ops::token_shift::{lerp, token_shift};
use subquad::ops::unary::{Unary, unary};

#[test]
fn gla() {
    let own = [
        ("gate_down", Fit::Same("gk_proj.0.weight")),
        ("gate_up", Fit::Same("gk_proj.1.weight")),
        ("gate_bias", Fit::Same("gk_proj.1.bias")),
    ];
    let tensors = with(&[&own, &FINISH]);
    Oracle { fixture: "gla", mixer: "gla", options: json!({"gate_rank": 4}), layer: 0, tensors: &tensors }.check();
}

/// Half and half with a window of 5, which has RoPE.
fn liger(fixture: &str, mixer: &str) {
    let window = Window { size: 5, sinks: 0, combine: Combine::Fixed };
    let options = json!({"output_scale": false});
    Oracle { fixture, mixer, options, layer: 0, tensors: &[] }.check_with(Some(window), SEPARATE);
}

#[test]
fn liger_gla() {
    liger("liger_gla", "liger-gla");
}

#[test]
fn liger_hgrn2() {
    liger("liger_hgrn2", "liger-hgrn2");
}

#[test]
fn liger_gsa() {
    liger("liger_gsa", "liger-gsa");
}

/// The key's place is that of f.
const HGRN2: [Place; 3] = [("q_proj.weight", [0, 8]), ("f_proj.weight", [0, 8]), ("i_proj.weight", [0, 8])];

#[test]
fn hgrn2() {
    let tensors = [("forget_bias", Fit::Constant(0.0)), ("norm_weight", Fit::Same("g_norm.weight"))];
    Oracle { fixture: "hgrn2", mixer: "hgrn2", options: defaults(), layer: 0, tensors: &tensors }
        .check_with(None, HGRN2);
}

#[test]
fn hgrn2_with_a_lower_bound() {
    let tensors = [
        ("forget_bias", Fit::Constant(0.0)),
        ("norm_weight", Fit::Same("g_norm.weight")),
        ("lower_bound_logit", Fit::Logit("lower_bound")),
    ];
    Oracle { fixture: "hgrn2_bounded", mixer: "hgrn2", options: defaults(), layer: 1, tensors: &tensors }
        .check_with(None, HGRN2);
}

#[test]
fn gsa() {
    let tensors = [
        ("gate_weight", Fit::Same("f_proj.weight")),
        ("gate_bias", Fit::Constant(0.0)),
        ("norm_weight", Fit::Same("g_norm.weight")),
    ];
    Oracle { fixture: "gsa", mixer: "gsa", options: json!({"slots": 6}), layer: 0, tensors: &tensors }.check();
}

/// The published r, k and v, whose mixtures with the token before are not ours, enter as projections; their constants
/// of ours are zero.
#[test]
fn rwkv6() {
    let tensors = [
        ("mix_base", Fit::Given("x_proj.0.mu")),
        ("decay_mix_down", Fit::Rows("x_proj.0.linear.weight", 4)),
        ("decay_mix_up", Fit::Columns("x_proj.2.weight", 4)),
        ("decay_mix_bias", Fit::Rows("x_bias", 1)),
        ("gate_mix_down", Fit::Rows("x_proj.0.linear.weight", 16)),
        ("gate_mix_up", Fit::Columns("x_proj.2.weight", 16)),
        ("gate_mix_bias", Fit::Rows("x_bias", 4)),
        ("decay_down", Fit::Same("w_proj.linear.lora.0.weight")),
        ("decay_up", Fit::Same("w_proj.linear.lora.2.weight")),
        ("decay_bias", Fit::Same("w_proj.linear.lora.2.bias")),
        ("bonus", Fit::Same("bonus")),
        ("q_shift", Fit::Constant(0.0)),
        ("k_shift", Fit::Constant(0.0)),
        ("v_shift", Fit::Constant(0.0)),
        ("norm_weight", Fit::Same("g_norm.weight")),
        ("norm_bias", Fit::Same("g_norm.bias")),
        ("output_gate_weight", Fit::Same("g_proj.linear.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    let options = json!({"mix_rank": 4, "decay_rank": 4});
    Oracle { fixture: "rwkv6", mixer: "rwkv6", options, layer: 0, tensors: &tensors }.check_projected(
        None,
        |x, input| {
            let (batch, tokens, _) = input.value().dims3().unwrap();
            let (shifted, _) = token_shift(input, None, &Documents::whole(batch, tokens)).unwrap();
            let of = |name: &str| -> Var { x[name].clone().into() };
            let mixed = lerp(input, &shifted, &of("x_proj.0.mu")).unwrap();
            [("r", 0), ("k", 2), ("v", 3)].map(|(name, row)| {
                let down: Var = x["x_proj.0.linear.weight"].narrow(0, 4 * row, 4).unwrap().contiguous().unwrap().into();
                let up: Var = x["x_proj.2.weight"].narrow(1, 4 * row, 4).unwrap().contiguous().unwrap().into();
                let bias: Var = x["x_bias"].get(row).unwrap().contiguous().unwrap().into();
                let low = unary(&linear(&mixed, &down).unwrap(), Unary::Tanh).unwrap();
                let share = add(&linear(&low, &up).unwrap(), &bias).unwrap();
                let m = lerp(input, &shifted, &share).unwrap();
                let y = linear(&m, &of(&format!("{name}_proj.linear.weight"))).unwrap();
                y.reshape(&[batch, tokens, HEADS, WIDTH]).unwrap()
            })
        },
    );
}
