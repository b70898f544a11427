//! Forms of a converted model other than its own folder, and why a model has none in them.

use super::fla_layers::Form;
use crate::arch::Spec;
use crate::model::Conversion;

/// Why no GGUF file can hold a converted model.
pub const NO_GGUF: &str = "a GGUF file is run by the architecture that it names, and there is none for softmax attention that \
                           was replaced by such mixers: a file under the teacher's name would run softmax attention";

/// Why flash-linear-attention's own model types cannot hold this one: everything that they have no place for. Their
/// blocks are Llama's around a layer without rotary positions, windows or biases of its gates.
pub fn without_fla(spec: &Spec, conversion: &Conversion) -> Vec<String> {
    let mut reasons = vec![];
    if let Some(window) = conversion.window {
        reasons.push(format!("a softmax window of {} keys is mixed into its layers", window.size));
    }
    if !conversion.softmax_layers.is_empty() {
        reasons.push("layers keep the teacher's attention".to_string());
    }
    let plain = ["llama", "mistral"].contains(&spec.family) && spec.biases.is_empty();
    if !plain {
        reasons.push(format!("the body of a `{}` is not that of its blocks", spec.family));
    }
    match conversion.mixer.as_str() {
        "simple-gla" => reasons.push("the package registers no model with this layer".into()),
        "retention" => reasons.push("its decays are fixed, and here each head has a time-scale".into()),
        "hgrn2" => {
            reasons.push("the bias of its forget gate, and a lower bound in each layer, have no place there".into())
        }
        "gsa" => reasons.push("the bias of its gates has no place in its layer".into()),
        "mamba2" => reasons.push("its norm takes each head by itself, and its gate has a bias".into()),
        "rwkv6" | "rwkv7" => {
            reasons.push("r, k and v are made of the input alone, not of a mixture with the token before".into());
        }
        "hedgehog" | "hedgehog-fla" | "t2r" | "elu-plus-one" | "squared-relu" | "based" | "rebased" => {
            reasons.push("its maps take q and k after rotary positions, which its layers do not have".into());
        }
        "liger-gla" | "liger-hgrn2" | "liger-gsa" => reasons.push("its gates are made of the keys".into()),
        other => match Form::of(other) {
            Some(form) => reasons.extend(form.incompatibilities(spec, conversion)),
            None => reasons.push(format!("the package has no model with the layer of `{other}`")),
        },
    }
    reasons
}
