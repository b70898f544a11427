//! Mechanisms with a decay per key channel.

use super::*;

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
