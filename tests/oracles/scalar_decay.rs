//! Mechanisms with a decay per head.

use super::*;

/// The time-scale that calibration sets is ours.
const DECAY: [(&str, Fit); 1] = [("decay_scale", Fit::Constant(1.0))];

#[test]
fn simple_gla() {
    let own = [("gate_weight", Fit::Same("gk_proj.weight")), ("gate_bias", Fit::Same("gk_proj.bias"))];
    let tensors = with(&[&own, &CONVOLUTIONS, &FINISH]);
    Oracle { fixture: "simple_gla", mixer: "simple-gla", options: defaults(), layer: 0, tensors: &tensors }.check();
}

#[test]
fn retention() {
    Oracle {
        fixture: "retention",
        mixer: "retention",
        options: defaults(),
        layer: 0,
        tensors: &with(&[&FINISH, &DECAY]),
    }
    .check();
}

#[test]
fn lightning() {
    let options = json!({"output_norm": false, "output_scale": false});
    Oracle { fixture: "lightning", mixer: "lightning", options, layer: 1, tensors: &DECAY }.check();
}

/// MiniMax keeps each head's q, k, v side by side and does not divide by sqrt K, which the norm takes out again.
#[test]
fn lightning_of_minimax() {
    let tensors = [
        DECAY[0],
        ("norm_weight", Fit::Same("norm.weight")),
        ("output_gate_weight", Fit::Same("output_gate.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    let options = json!({"slopes": "geometric", "activation": true});
    let places = [0, 8, 16].map(|first| ("qkv_proj.weight", [first, first + 24]));
    Oracle { fixture: "lightning_minimax", mixer: "lightning", options, layer: 1, tensors: &tensors }
        .check_with(None, places);
}

/// MambaInLlama: rows of in_proj are z, x <- v, B <- k, C <- q, dt; those of the convolution x, B, C.
#[test]
fn mamba2() {
    let tensors = [
        ("a_log", Fit::Same("A_log")),
        ("skip", Fit::Same("D")),
        ("norm_weight", Fit::Same("norm.weight")),
        ("dt_weight", Fit::Rows("in_proj.weight", 64)),
        ("dt_bias", Fit::Same("dt_bias")),
        ("output_gate_weight", Fit::Rows("in_proj.weight", 0)),
        ("output_gate_bias", Fit::Constant(0.0)),
        ("q_convolution", Fit::Rows("conv1d.weight", 32)),
        ("k_convolution", Fit::Rows("conv1d.weight", 16)),
        ("v_convolution", Fit::Rows("conv1d.weight", 0)),
        ("q_convolution_bias", Fit::Rows("conv1d.bias", 32)),
        ("k_convolution_bias", Fit::Rows("conv1d.bias", 16)),
        ("v_convolution_bias", Fit::Rows("conv1d.bias", 0)),
    ];
    let places = [48, 32, 16].map(|first| ("in_proj.weight", [first, first + 8]));
    Oracle { fixture: "mamba2_grouped", mixer: "mamba2", options: defaults(), layer: 0, tensors: &tensors }
        .check_with(None, places);
}

#[test]
fn mlstm() {
    let tensors = [
        ("forget_weight", Fit::Same("fgate_preact.weight")),
        ("forget_bias", Fit::Same("fgate_preact.bias")),
        ("input_weight", Fit::Same("igate_preact.weight")),
        ("input_bias", Fit::Same("igate_preact.bias")),
        ("norm_weight", Fit::Same("multihead_norm.weight")),
        ("output_gate_weight", Fit::Same("ogate_preact.weight")),
        ("output_gate_bias", Fit::Constant(0.0)),
    ];
    let places = ["q.weight", "k.weight", "v.weight"].map(|name| (name, [0, 8]));
    Oracle { fixture: "mlstm", mixer: "mlstm", options: defaults(), layer: 0, tensors: &tensors }
        .check_with(None, places);
}

/// The norm takes out a factor of all input gates but for what eps leaves, so their bias has next to no gradient.
#[test]
fn mlstm_cell() {
    let tensors = [
        ("forget_weight", Fit::Same("cell.fgate.weight")),
        ("forget_bias", Fit::Same("cell.fgate.bias")),
        ("input_weight", Fit::Same("cell.igate.weight")),
        ("input_bias", Fit::Cancelling("cell.igate.bias", "cell.igate.weight")),
        ("norm_weight", Fit::Plus("cell.outnorm.weight", 1.0)),
    ];
    let options = json!({"gates": "projections"});
    Oracle { fixture: "mlstm_cell", mixer: "mlstm", options, layer: 0, tensors: &tensors }.check();
}
