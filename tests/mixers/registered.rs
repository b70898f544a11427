//! What a registration says of its mixer is so.

use super::common::largest;
use super::{Case, Layer, few, layer_dims};
use std::collections::BTreeSet;
use subquad::mixer::{MIXERS, Registration};
use subquad::ops::rope::Rotary;

#[test]
fn words() {
    let names: BTreeSet<&str> = MIXERS.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), MIXERS.len());
    for Registration { name, summary, formula, paper, inherits, combine, .. } in MIXERS {
        assert!(
            [summary, formula, paper, inherits].iter().all(|text| !text.is_empty()) && !combine.is_empty(),
            "{name}"
        );
    }
}

/// Positions matter to those that take q and k after RoPE, in every layer, and to no others.
#[test]
fn rope() {
    for layer in 0..4 {
        let layer_dims = layer_dims(4, 2, 8, layer);
        for (m, _) in few().filter(|(_, window)| window.is_none()) {
            let (case, x) = (Case::new(m, layer_dims, None), Layer::new(layer_dims, 1, 20));
            let other = Layer { rotary: Rotary::new(layer_dims.width, 7.0), ..x.clone() };
            let d = largest(&case.mix(&x.whole(), None), &case.mix(&other.whole(), None));
            assert_eq!(d > 0.0, m.rope, "{}: {d}", case.what);
        }
    }
}

/// It fits its site by default, and says so where an option does not.
#[test]
fn fit() {
    for width in [2, 8, 64, 128] {
        let layer_dims = layer_dims(4, 2, width, 1);
        for (m, window) in few() {
            assert_eq!(Case::new(m, layer_dims, window).mixer.incompatibilities(0), [], "{}", m.name);
        }
    }
    let wide = |name, options: serde_json::Value| {
        subquad::mixer::build(name, options.as_object().unwrap(), layer_dims(4, 2, 8, 1), None)
            .err()
            .map(|e| e.to_string())
    };
    for name in ["based", "rebased", "hedgehog", "t2r"] {
        let error = wide(name, serde_json::json!({ "feature_width": 9 })).unwrap();
        assert!(error.contains("`feature_width` is 9") && error.contains("8 channels"), "{error}");
    }
    assert_eq!(wide("hedgehog", serde_json::json!({ "feature_width": 9, "init": "kaiming" })), None);
    assert_eq!(wide("t2r", serde_json::json!({ "feature_width": 9, "init": "kaiming" })), None);
    assert!(wide("gal", serde_json::json!({})).unwrap().contains("unknown mixer `gal`"));
}
