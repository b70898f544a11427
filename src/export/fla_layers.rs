//! The layers of flash-linear-attention's models that a mixer is exactly: their names for its tensors, and the settings
//! under which they compute the same. A layer is one entry of [`FORMS`].
//!
//! Its layers share one norm weight among heads; ours has one for each, which goes into the output projection. Those with
//! the delta rule have as many keys and values as queries, where ours repeat them.

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::arch::{Spec, Target};
use crate::mixer::Params;
use crate::model::{Conversion, Layer as Weights};
use crate::{Error, Result};

/// A model type that holds a mixer.
pub struct Form {
    pub mixer: &'static str,
    pub model_type: &'static str,
    pub architecture: &'static str,
    /// Options under which it does, with the values that its configuration cannot change; a `gate_rank` of null is the
    /// width of a head.
    needs: &'static [(&'static str, &'static str)],
    /// What its configuration says of the layers.
    pub settings: fn(&Spec, &Conversion) -> Value,
    layer: fn(&mut Layer) -> Result<()>,
}

/// What layers with the delta rule need.
const DELTA: &[(&str, &str)] = &[("output_gate", "false"), ("beta_bias", "false"), ("convolution", "true")];

pub const FORMS: &[Form] = &[
    Form {
        mixer: "gla",
        model_type: "gla",
        architecture: "GLAForCausalLM",
        needs: &[("output_gate", "false"), ("gate_rank", "16")],
        settings: |spec, conversion| {
            json!({
                "num_kv_heads": spec.kv_heads,
                "expand_k": expansion(spec),
                "expand_v": expansion(spec),
                "use_short_conv": conversion.flag("convolution"),
                "use_output_gate": false,
                "feature_map": null,
            })
        },
        layer: |layer| {
            layer.put("gk_proj.0.weight", layer.own("gate_down")?);
            layer.put("gk_proj.1.weight", layer.own("gate_up")?);
            layer.put("gk_proj.1.bias", layer.own("gate_bias")?);
            layer.projections(1, 1)?;
            layer.normed_output("g_norm")
        },
    },
    Form {
        mixer: "deltanet",
        model_type: "delta_net",
        architecture: "DeltaNetForCausalLM",
        needs: DELTA,
        settings: |spec, conversion| {
            json!({
                "expand_k": expansion(spec),
                "expand_v": expansion(spec),
                "use_gate": false,
                "allow_neg_eigval": conversion.flag("negative_eigenvalues"),
                "qk_norm": "l2",
                "qk_activation": "silu",
            })
        },
        layer: |layer| layer.delta_rule(1),
    },
    Form {
        mixer: "gated-deltanet",
        model_type: "gated_deltanet",
        architecture: "GatedDeltaNetForCausalLM",
        needs: DELTA,
        settings: |spec, conversion| {
            json!({
                "head_dim": spec.head_width,
                "expand_v": 1.0,
                "use_gate": false,
                "allow_neg_eigval": conversion.flag("negative_eigenvalues"),
            })
        },
        layer: |layer| {
            layer.decay()?;
            layer.delta_rule(1)
        },
    },
    Form {
        mixer: "delta-product",
        model_type: "gated_deltaproduct",
        architecture: "GatedDeltaProductForCausalLM",
        needs: DELTA,
        settings: |spec, conversion| {
            json!({
                "head_dim": spec.head_width,
                "expand_v": 1.0,
                "use_output_gate": false,
                "use_forget_gate": true,
                "allow_neg_eigval": conversion.flag("negative_eigenvalues"),
                "num_householder": conversion.options.get("micro_steps"),
            })
        },
        layer: |layer| {
            layer.decay()?;
            let writes = layer.conversion.options.get("micro_steps").and_then(Value::as_u64).unwrap_or(1);
            layer.delta_rule(writes as usize)
        },
    },
    Form {
        mixer: "kda",
        model_type: "kda",
        architecture: "KDAForCausalLM",
        needs: &[("output_gate", "true"), ("beta_bias", "false"), ("convolution", "true"), ("gate_rank", "null")],
        settings: |spec, conversion| {
            let safe = conversion.flag("safe_gate");
            json!({
                "head_dim": spec.head_width,
                "expand_v": 1.0,
                "allow_neg_eigval": conversion.flag("negative_eigenvalues"),
                "safe_gate": safe,
                "lower_bound": if safe { json!(-5.0) } else { Value::Null },
            })
        },
        layer: |layer| {
            layer.put("f_proj.0.weight", layer.own("gate_down")?);
            layer.put("f_proj.1.weight", layer.own("gate_up")?);
            layer.put("dt_bias", layer.own("dt_bias")?);
            layer.put("A_log", layer.own("a_log")?.flatten_all()?);
            layer.put("g_proj.0.weight", layer.own("output_gate_down")?);
            layer.put("g_proj.1.weight", layer.own("output_gate_up")?);
            layer.put("g_proj.1.bias", layer.own("output_gate_bias")?);
            layer.delta_rule(1)
        },
    },
];

impl Form {
    pub fn of(mixer: &str) -> Option<&'static Form> {
        FORMS.iter().find(|form| form.mixer == mixer)
    }

    /// Options of a conversion that its layer has no place for.
    pub fn incompatibilities(&self, spec: &Spec, conversion: &Conversion) -> Vec<String> {
        let fits = |name: &str, wanted: &str| {
            let wanted = serde_json::from_str(wanted).unwrap_or(Value::Null);
            let given = conversion.options.get(name).unwrap_or(&Value::Null);
            // The rank that a recipe leaves open is the width of a head.
            *given == wanted || (wanted.is_null() && given.as_u64() == Some(spec.head_width as u64))
        };
        let incompatibilities = self.needs.iter().filter(|(name, wanted)| !fits(name, wanted));
        let mut reasons: Vec<String> = incompatibilities.map(|(name, wanted)| why(name, wanted, spec)).collect();
        // Some of its configurations say the widths of all heads as a multiple, and round down.
        if (spec.width as f64 * expansion(spec)) as usize != spec.heads * spec.head_width {
            reasons.push("the width of its heads is a share of the model's".into());
        }
        reasons
    }

    /// The tensors of a layer by its names for them.
    pub fn layer(
        &self,
        spec: &Spec,
        conversion: &Conversion,
        weights: &Weights,
        bound: &Params,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut layer = Layer { spec, conversion, weights, bound, tensors: vec![] };
        (self.layer)(&mut layer)?;
        Ok(layer.tensors)
    }
}

/// What an option costs, and how to train without it.
fn why(name: &str, wanted: &str, spec: &Spec) -> String {
    let what = match name {
        "output_gate" if wanted == "true" => "its layer always has an output gate",
        "output_gate" => "the bias of the output gate has no place in its layer",
        "beta_bias" => "the bias of beta, which sets how much is written, has no place in its layer",
        "convolution" => "its layer has SiLU on q, k and v wherever there is no convolution",
        _ => "the rank of its gates is fixed",
    };
    match wanted {
        "null" => format!("{what}: train with `{name} = {}`", spec.head_width),
        _ => format!("{what}: train with `{name} = {wanted}`"),
    }
}

/// Widths of all heads as a multiple of the model's.
fn expansion(spec: &Spec) -> f64 {
    (spec.heads * spec.head_width) as f64 / spec.width as f64
}

/// A layer in the making.
struct Layer<'a> {
    spec: &'a Spec,
    conversion: &'a Conversion,
    weights: &'a Weights,
    bound: &'a Params,
    tensors: Vec<(String, Tensor)>,
}

impl Layer<'_> {
    fn put(&mut self, name: &str, tensor: Tensor) {
        self.tensors.push((name.into(), tensor));
    }

    /// A tensor of the mixer.
    fn own(&self, name: &str) -> Result<Tensor> {
        Ok(self.bound.get(name)?.value().clone())
    }

    /// The decay of each head.
    fn decay(&mut self) -> Result<()> {
        self.put("a_proj.weight", self.own("decay_weight")?);
        self.put("dt_bias", self.own("dt_bias")?);
        self.put("A_log", self.own("a_log")?.flatten_all()?);
        Ok(())
    }

    /// All but the decay of a layer with so many delta rules a token: keys and values for each query head.
    fn delta_rule(&mut self, writes: usize) -> Result<()> {
        let mut beta = vec![self.own("beta_weight")?];
        if writes > 1 {
            beta.push(self.own("more_beta_weight")?);
        }
        self.put("b_proj.weight", Tensor::cat(&beta, 0)?);
        self.projections(self.spec.heads / self.spec.kv_heads, writes)?;
        self.normed_output("o_norm")
    }

    /// q, k and v with their convolutions, each head of keys and values `repeats` times, those of further writes below
    /// the first's.
    fn projections(&mut self, repeats: usize, writes: usize) -> Result<()> {
        let convolved = self.conversion.flag("convolution");
        for (side, target) in [("q", Target::Q), ("k", Target::K), ("v", Target::V)] {
            let mut rows = vec![self.weights.weight(target)?.clone()];
            let mut taps = if convolved { vec![self.own(&format!("{side}_convolution"))?] } else { vec![] };
            let repeats = if side == "q" { 1 } else { repeats };
            if side != "q" && writes > 1 {
                rows.push(self.own(&format!("more_{side}_weight"))?);
                taps.push(self.own(&format!("more_{side}_convolution"))?);
            }
            self.put(&format!("{side}_proj.weight"), self.repeated(&Tensor::cat(&rows, 0)?, repeats)?);
            if convolved {
                let taps = self.repeated(&Tensor::cat(&taps, 0)?, repeats)?;
                self.put(&format!("{side}_conv1d.weight"), taps.unsqueeze(1)?);
            }
        }
        Ok(())
    }

    /// [n K, .] -> [n r K, .]: each head r times.
    fn repeated(&self, x: &Tensor, repeats: usize) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        let width = self.spec.head_width;
        if rows % width != 0 {
            return Err(Error::Internal(format!("{rows} rows are no heads of {width}")));
        }
        let heads = x.reshape((rows / width, 1, width, columns))?;
        let all = heads.broadcast_as((rows / width, repeats, width, columns))?;
        Ok(all.contiguous()?.reshape((rows * repeats, columns))?)
    }

    /// The output projection, with the weights of the norm before it: o W^T with o = norm * weight of each head and
    /// channel.
    fn normed_output(&mut self, norm: &str) -> Result<()> {
        let Spec { heads, head_width, .. } = *self.spec;
        let scale = self.own("norm_weight")?.reshape((1, heads * head_width))?;
        self.put("o_proj.weight", self.weights.weight(Target::O)?.broadcast_mul(&scale)?);
        self.put(&format!("{norm}.weight"), Tensor::ones(head_width, DType::F32, scale.device())?);
        Ok(())
    }
}
