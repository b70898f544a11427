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
