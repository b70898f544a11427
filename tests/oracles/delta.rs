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
