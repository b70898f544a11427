//! The delta family.

use super::*;

#[test]
fn gated_deltanet() {
    let own = [
        ("a_log", Fit::Same("A_log")),
        ("decay_weight", Fit::Same("a_proj.weight")),
        ("dt_bias", Fit::Same("dt_bias")),
        ("beta_weight", Fit::Same("b_proj.weight")),
        ("beta_bias", Fit::Constant(0.0)),
        ("norm_weight", Fit::Shared("o_norm.weight")),
        ("output_gate_weight", Fit::Same("g_proj.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    let tensors = with(&[&own, &CONVOLUTIONS]);
    Oracle { fixture: "gated_deltanet", mixer: "gated-deltanet", options: defaults(), layer: 0, tensors: &tensors }
        .check();
}

fn deltanet_is(fixture: &str, options: Value) {
    let own = [
        ("beta_weight", Fit::Same("b_proj.weight")),
        ("beta_bias", Fit::Constant(0.0)),
        ("norm_weight", Fit::Shared("o_norm.weight")),
    ];
    let tensors = with(&[&own, &CONVOLUTIONS]);
    Oracle { fixture, mixer: "deltanet", options, layer: 0, tensors: &tensors }.check();
}

#[test]
fn deltanet() {
    deltanet_is("deltanet", defaults());
}

#[test]
fn deltanet_with_negative_eigenvalues() {
    deltanet_is("deltanet_negative", json!({"negative_eigenvalues": true}));
}

fn kda_is(fixture: &str, safe_gate: bool) {
    let own = [
        ("a_log", Fit::Same("A_log")),
        ("gate_down", Fit::Same("f_proj.0.weight")),
        ("gate_up", Fit::Same("f_proj.1.weight")),
        ("dt_bias", Fit::Same("dt_bias")),
        ("beta_weight", Fit::Same("b_proj.weight")),
        ("beta_bias", Fit::Constant(0.0)),
        ("norm_weight", Fit::Shared("o_norm.weight")),
        ("output_gate_down", Fit::Same("g_proj.0.weight")),
        ("output_gate_up", Fit::Same("g_proj.1.weight")),
        ("output_gate_bias", Fit::Same("g_proj.1.bias")),
    ];
    let tensors = with(&[&own, &CONVOLUTIONS]);
    let options = json!({"safe_gate": safe_gate});
    Oracle { fixture, mixer: "kda", options, layer: 0, tensors: &tensors }.check();
}

#[test]
fn kda() {
    kda_is("kda", false);
}

#[test]
fn kda_with_a_safe_gate() {
    kda_is("kda_safe_gate", true);
}

/// The rows of their k, v and beta are the first write's, then the second's.
#[test]
fn delta_product() {
    let tensors = [
        ("a_log", Fit::Same("A_log")),
        ("more_k_weight", Fit::Rows("k_proj.weight", 16)),
        ("more_v_weight", Fit::Rows("v_proj.weight", 16)),
        ("decay_weight", Fit::Same("a_proj.weight")),
        ("dt_bias", Fit::Same("dt_bias")),
        ("beta_weight", Fit::Rows("b_proj.weight", 0)),
        ("beta_bias", Fit::Constant(0.0)),
        ("more_beta_weight", Fit::Rows("b_proj.weight", 2)),
        ("more_beta_bias", Fit::Constant(0.0)),
        ("q_convolution", Fit::Same("q_conv1d.weight")),
        ("k_convolution", Fit::Rows("k_conv1d.weight", 0)),
        ("v_convolution", Fit::Rows("v_conv1d.weight", 0)),
        ("more_k_convolution", Fit::Rows("k_conv1d.weight", 16)),
        ("more_v_convolution", Fit::Rows("v_conv1d.weight", 16)),
        ("norm_weight", Fit::Shared("o_norm.weight")),
        ("output_gate_weight", Fit::Same("g_proj.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    Oracle { fixture: "delta_product", mixer: "delta-product", options: defaults(), layer: 0, tensors: &tensors }
        .check();
}

/// Theirs takes q and k as they come and the mean over a value's channels.
#[test]
fn titans() {
    let tensors = [
        ("theta_weight", Fit::Same("theta_proj.weight")),
        ("theta_bias", Fit::Same("theta_proj.bias")),
        ("alpha_weight", Fit::Same("alpha_proj.weight")),
        ("alpha_bias", Fit::Same("alpha_proj.bias")),
    ];
    let options = json!({"unit_length": false, "mean_loss": true, "output_scale": false});
    Oracle { fixture: "titans", mixer: "titans", options, layer: 0, tensors: &tensors }.check();
}

/// The published layer with no shift before r, k and v.
#[test]
fn rwkv7() {
    let tensors = [
        ("k_k", Fit::Same("k_k")),
        ("k_a", Fit::Same("k_a")),
        ("r_k", Fit::Same("r_k")),
        ("norm_weight", Fit::Same("g_norm.weight")),
        ("norm_bias", Fit::Same("g_norm.bias")),
        ("decay_down", Fit::Same("w_lora.lora.0.weight")),
        ("decay_up", Fit::Same("w_lora.lora.2.weight")),
        ("decay_bias", Fit::Same("w_lora.lora.2.bias")),
        ("rate_down", Fit::Same("a_lora.lora.0.weight")),
        ("rate_up", Fit::Same("a_lora.lora.2.weight")),
        ("rate_bias", Fit::Same("a_lora.lora.2.bias")),
        ("gate_down", Fit::Same("g_lora.lora.0.weight")),
        ("gate_up", Fit::Same("g_lora.lora.2.weight")),
        ("decay_shift", Fit::Same("x_w")),
        ("rate_shift", Fit::Same("x_a")),
        ("gate_shift", Fit::Same("x_g")),
    ];
    let options = json!({"decay_rank": 4, "rate_rank": 4, "gate_rank": 4});
    let places = [("r_proj.weight", [0, 8]), ("k_proj.weight", [0, 8]), ("v_proj.weight", [0, 8])];
    Oracle { fixture: "rwkv7_unshifted", mixer: "rwkv7", options, layer: 0, tensors: &tensors }
        .check_with(None, places);
}
