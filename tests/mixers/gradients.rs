//! Gradients of every input and tensor against differences of the loss along random directions.

use super::common::random;
use super::{Case, Layer, few, layer_dims, options};
use candle_core::{DType, Tensor};
use subquad::mixer::{LayerDims, MIXERS};
use subquad::ops::{Documents, Tape};

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    let double = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    (double(a) * double(b)).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// Of a call with documents and padding. None is zero, but of what a mixer does not use: it need not use everything that
/// a layer offers.
fn are_those_of_differences(case: &Case, layer_dims: LayerDims) {
    let (batch, tokens) = (2, 37);
    let x = Layer::new(layer_dims, batch, tokens);
    let documents = Documents::new(tokens, vec![vec![2..20, 20..37], vec![0..37]]).unwrap();
    let up = random(99, &[batch, tokens, layer_dims.heads, layer_dims.width], 1.0);
    let mut named = case.named(&x);
    let tape = Tape::new();
    let (o, vars) = case.of(&named, &x.rotary, &documents, Some(&tape));
    let mut gradients = tape.backward(vec![(&o, up.clone())]).unwrap();
    for i in 0..named.len() {
        let (name, value) = named[i].clone();
        let Some(gradient) = gradients.take(&vars[i]) else {
            assert!(name.starts_with("the layer's"), "{}: no gradient of {name}", case.what);
            continue;
        };
        let direction = random(7, value.dims(), 1.0);
        let along = inner(&gradient, &direction);
        let size = inner(&gradient, &gradient).sqrt() * (direction.elem_count() as f64).sqrt();
        assert!(size > 1e-6 || case.fixed(&name), "{}: the gradient of {name} is zero", case.what);
        let h = 1e-3;
        let mut at = |sign: f64| {
            named[i].1 = (&value + (&direction * (sign * h)).unwrap()).unwrap();
            inner(case.of(&named, &x.rotary, &documents, None).0.value(), &up)
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
        named[i].1 = value;
        // Outputs are f32, and h divides their rounding. Formulas round more than kernels, most where a state grows: they
        // weigh both sides of a product by its decay instead of the product, and multiply by an inverse instead of solving.
        let terms = (o.value() * &up).unwrap();
        let formulas = std::env::var_os("SUBQUAD_CPU_KERNELS").is_some_and(|value| value == "0");
        let rounding = if formulas { 2e-6 } else { 2e-7 } * inner(&terms, &terms).sqrt() / h;
        let what = &case.what;
        let allowed = 5e-3 * size.max(1.0) + rounding;
        assert!((slope - along).abs() < allowed, "{what}: {name}: {along} instead of {slope}");
    }
}

#[test]
fn beside_every_kind_of_window() {
    let layer_dims = layer_dims(4, 2, 8, 1);
    for (m, window) in few() {
        are_those_of_differences(&Case::new(m, layer_dims, window), layer_dims);
    }
}

#[test]
fn with_every_option() {
    let layer_dims = layer_dims(4, 2, 8, 1);
    for m in MIXERS {
        for options in options(m).into_iter().skip(1) {
            are_those_of_differences(&Case::with(m, &options, layer_dims, None), layer_dims);
        }
    }
}

#[test]
fn in_every_layer_and_grouping() {
    for m in MIXERS {
        for layer_dims in [layer_dims(4, 4, 8, 0), layer_dims(4, 1, 8, 3), layer_dims(1, 1, 20, 2)] {
            are_those_of_differences(&Case::new(m, layer_dims, None), layer_dims);
        }
    }
}
