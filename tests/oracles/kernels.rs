//! Feature-map kernels and their normalisers.

use super::*;

/// The scale that calibration sets is ours.
const SCALE: (&str, Fit) = ("output_scale", Fit::Constant(1.0));
/// And so is that of features.
const FEATURES: [(&str, Fit); 1] = [("feature_scale", Fit::Constant(1.0))];

fn check(fixture: &str, mixer: &str, options: Value, own: &[(&'static str, Fit)]) {
    Oracle { fixture, mixer, options, layer: 0, tensors: &[own, &[SCALE]].concat() }.check();
}

#[test]
fn elu_plus_one() {
    check("elu", "elu-plus-one", defaults(), &[]);
}

#[test]
fn squared_relu() {
    check("squared_relu", "squared-relu", defaults(), &[]);
}

#[test]
fn slab() {
    check("slab", "slab", defaults(), &[]);
}

/// The map that heads share there, as one for each and as one.
#[test]
fn t2r() {
    let (q, k) = ("feature_map_q.layer.weight", "feature_map_k.layer.weight");
    check("t2r", "t2r", defaults(), &[("q_map", Fit::Shared(q)), ("k_map", Fit::Shared(k))]);
    check("t2r", "t2r", json!({"maps": "shared"}), &[("q_map", Fit::Same(q)), ("k_map", Fit::Same(k))]);
    let biased = [("q_map", Fit::Shared(q)), ("k_map", Fit::Shared(k))];
    let zero = [("q_bias", Fit::Constant(0.0)), ("k_bias", Fit::Constant(0.0))];
    check("t2r", "t2r", json!({"bias": true}), &[biased, zero].concat());
}

#[test]
fn hedgehog_fla() {
    let tensors = |fit: fn(&'static str) -> Fit| {
        [
            ("q_map", fit("feature_map_q.layer.weight")),
            ("k_map", fit("feature_map_k.layer.weight")),
            ("q_bias", fit("feature_map_q.layer.bias")),
            ("k_bias", fit("feature_map_k.layer.bias")),
        ]
    };
    check("hedgehog_fla", "hedgehog-fla", defaults(), &tensors(Fit::Shared));
    check("hedgehog_fla", "hedgehog-fla", json!({"maps": "shared"}), &tensors(Fit::Same));
}

#[test]
fn performer() {
    check("performer", "performer", defaults(), &[("omega", Fit::Given("omega"))]);
}

#[test]
fn cosformer() {
    check("cosformer", "cosformer", json!({"length": 32}), &[]);
}

/// A fixture whose q and k are narrower: zeros stand beside them here.
fn narrow(fixture: &str, mixer: &str, own: &[(&'static str, Fit)]) {
    let tensors = [own, &[SCALE]].concat();
    let project = |x: &Tensors, input: &Var| {
        ["q", "k", "v"].map(|name| {
            let (batch, tokens, model_width) = input.value().dims3().unwrap();
            let weight = x[&format!("{name}_proj.weight")].reshape((HEADS, (), model_width)).unwrap();
            let weight = weight.pad_with_zeros(1, 0, WIDTH - weight.dim(1).unwrap()).unwrap();
            let weight = weight.reshape((HEADS * WIDTH, model_width)).unwrap();
            linear(input, &weight.into()).unwrap().reshape(&[batch, tokens, HEADS, WIDTH]).unwrap()
        })
    };
    Oracle { fixture, mixer, options: json!({"feature_width": 4}), layer: 0, tensors: &tensors }
        .check_projected(None, project);
}

/// q and k of width 4 there, which the reduction of ours passes on as they are.
#[test]
fn based() {
    narrow("based", "based", &[("q_map", Fit::Start), ("k_map", Fit::Start)]);
}

#[test]
fn rebased() {
    let affine = [("gamma", Fit::Shared("feature_map.gamma")), ("beta", Fit::Shared("feature_map.beta"))];
    let maps = [("q_map", Fit::Start), ("k_map", Fit::Start)];
    narrow("rebased", "rebased", &[affine, maps].concat());
}

#[test]
fn flowformer() {
    check("flowformer", "flowformer", defaults(), &[]);
}

#[test]
fn mala() {
    check("mala", "mala", defaults(), &FEATURES);
    check("mala_rope", "mala", defaults(), &FEATURES);
}

#[test]
fn inline() {
    check("inline", "inline", defaults(), &FEATURES);
}

#[test]
fn nalaformer() {
    check("nalaformer", "nalaformer", defaults(), &[]);
}

/// The first half of the layers has blocks, the second the norm.
#[test]
fn transnormer() {
    let check = |fixture, layer, options| {
        Oracle { fixture, mixer: "transnormer", options, layer, tensors: &[SCALE] }.check();
    };
    check("diag_attention", 0, json!({"block": 5}));
    check("norm_attention", 3, defaults());
}

/// Performer's directions at the start: orthogonal in blocks, of the lengths of Gaussian vectors.
#[test]
fn orthogonal_gaussian() {
    let (rows, width) = (40, 16);
    let omega = Initial::OrthogonalGaussian.tensor("omega", &[rows, width], 1).unwrap();
    let products = omega.matmul(&omega.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (i, row) in products.iter().enumerate() {
        for (j, product) in row.iter().enumerate().filter(|(j, _)| *j != i && j / width == i / width) {
            assert!(product.abs() < 1e-4, "rows {i} and {j}: {product}");
        }
    }
    let mean = products.iter().enumerate().map(|(i, row)| row[i]).sum::<f32>() / rows as f32;
    assert!((mean - width as f32).abs() < 4.0, "squared lengths of {mean} on average");
    let other = Initial::OrthogonalGaussian.tensor("omega", &[rows, width], 2).unwrap();
    assert!(difference(&omega, &other) > 0.5, "the seed matters");
}
