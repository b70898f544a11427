//! Mechanisms with a decay per head.

use super::*;

#[test]
fn simple_gla() {
    let own = [("gate_weight", Fit::Same("gk_proj.weight")), ("gate_bias", Fit::Same("gk_proj.bias"))];
    let tensors = with(&[&own, &CONVOLUTIONS, &FINISH]);
    Oracle { fixture: "simple_gla", mixer: "simple-gla", options: defaults(), layer: 0, tensors: &tensors }.check();
}

#[test]
fn retention() {
    Oracle { fixture: "retention", mixer: "retention", options: defaults(), layer: 0, tensors: &FINISH }.check();
}

#[test]
fn lightning() {
    let options = json!({"output_norm": false, "output_scale": false});
    Oracle { fixture: "lightning", mixer: "lightning", options, layer: 1, tensors: &[] }.check();
}

/// MiniMax keeps each head's q, k, v side by side and does not divide by sqrt K, which the norm takes out again.
#[test]
fn lightning_of_minimax() {
    let tensors = [
        ("norm_weight", Fit::Same("norm.weight")),
        ("output_gate_weight", Fit::Same("output_gate.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    let options = json!({"slopes": "geometric", "activation": true});
    let places = [0, 8, 16].map(|first| ("qkv_proj.weight", [first, first + 24]));
    Oracle { fixture: "lightning_minimax", mixer: "lightning", options, layer: 1, tensors: &tensors }
        .check_with(None, places);
}
