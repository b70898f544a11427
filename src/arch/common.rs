//! What the families' readers share: sizes under their usual names, activations, windows. A family calls [`decoder`]
//! and changes what is its own.

use super::TIED;
use super::fields::Fields;
use super::names::{Names, Target};
use super::spec::{Activation, Block, Layout, Multipliers, Norm, NormKind, Spec};
use crate::checkpoint::shown;
use crate::error::Result;

/// Bounds far above every model that exists; beyond them a number is a mistake, and products stay countable.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_WIDTH: usize = 1 << 12;
pub(super) const MAX_FFN: usize = 1 << 20;
pub(super) const MAX_CONTEXT: usize = 1 << 30;
/// The largest factor that a config may multiply something by.
pub(super) const MAX_FACTOR: f64 = 1e6;

/// How a family names its sizes.
pub(super) struct Keys {
    pub width: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    pub kv_heads: &'static str,
    pub ffn: &'static str,
    pub context: &'static str,
    pub eps: &'static str,
}

pub(super) const KEYS: Keys = Keys {
    width: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    ffn: "intermediate_size",
    context: "max_position_embeddings",
    eps: "rms_norm_eps",
};

/// A family's defaults of keys that may be absent, as its configuration class in transformers has them.
pub(super) struct Absent {
    pub eps: f64,
    pub tied: bool,
    /// The MLP's width in widths of the model; 0: the key must be there.
    pub ffn: usize,
    /// `head_dim`; 0: the width over the heads.
    pub head_width: usize,
    /// 0: the key must be there.
    pub context: usize,
}

pub(super) const ABSENT: Absent = Absent { eps: 1e-6, tied: false, ffn: 0, head_width: 0, context: 0 };

/// A decoder like Llama's without positions: RMSNorm before attention and MLP, no biases, a gated MLP with SiLU.
pub(super) fn decoder(
    fields: &Fields,
    family: &'static str,
    names: Names,
    keys: &Keys,
    absent: &Absent,
) -> Result<Spec> {
    if fields.get("quantization_config").is_some() {
        return Err(fields
            .wrong("`quantization_config` is set: quantised weights are not read", "give the unquantised checkpoint"));
    }
    let width = fields.size(keys.width, MAX_WIDTH)?;
    let heads = fields.size(keys.heads, MAX_HEADS)?;
    let kv_heads = fields.optional_size(keys.kv_heads, MAX_HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let what = format!("`{}`, {heads}, is no multiple of `{}`, {kv_heads}", keys.heads, keys.kv_heads);
        return Err(fields.wrong(what, DAMAGED));
    }
    let head_width = match fields.optional_size("head_dim", MAX_HEAD_WIDTH)? {
        Some(head_width) => head_width,
        None if absent.head_width > 0 => absent.head_width,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let what = format!(
                "`{}`, {width}, is no multiple of `{}`, {heads}, and `head_dim` is missing",
                keys.width, keys.heads
            );
            return Err(fields.wrong(what, DAMAGED));
        }
    };
    let ffn = match fields.optional_size(keys.ffn, MAX_FFN)? {
        None if absent.ffn > 0 => absent.ffn * width,
        Some(ffn) => ffn,
        None => fields.size(keys.ffn, MAX_FFN)?,
    };
    let context = match fields.optional_size(keys.context, MAX_CONTEXT)? {
        None if absent.context > 0 => absent.context,
        Some(context) => context,
        None => fields.size(keys.context, MAX_CONTEXT)?,
    };
    let vocab = fields.size("vocab_size", MAX_VOCAB)?;
    let layers = fields.size(keys.layers, MAX_LAYERS)?;
    let block = Block { scale: 1.0 / (head_width as f64).sqrt(), window: None, rope: None, experts: false };
    Ok(Spec {
        family,
        vocab,
        width,
        layers,
        heads,
        kv_heads,
        head_width,
        ffn,
        context,
        norm: Norm {
            kind: NormKind::Rms,
            eps: fields.number(keys.eps, f64::from(f32::MIN_POSITIVE), 1.0, absent.eps)?,
        },
        layout: Layout::Pre,
        qk_norm: None,
        biases: vec![],
        score_cap: None,
        ropes: vec![],
        blocks: vec![block; layers],
        positions: None,
        activation: Activation::Silu,
        gated: true,
        experts: None,
        multipliers: Multipliers { embedding: 1.0, residual: 1.0, logits: 1.0 },
        logit_cap: None,
        tied: fields.flag_or(TIED, absent.tied)?,
        bos: fields.tokens("bos_token_id", vocab)?.first().copied(),
        eos: fields.tokens("eos_token_id", vocab)?,
        names,
        bare: false,
    })
}

pub(super) const DAMAGED: &str = "`config.json` is damaged: download or copy it again";

/// The linear layers of attention.
pub(super) const QKVO: [Target; 4] = [Target::Q, Target::K, Target::V, Target::O];

/// Those of a block whose MLP has no gate.
pub(super) const UNGATED: [Target; 6] = [Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down];

/// Adds biases to `targets` where the flag `key` says so.
pub(super) fn biases(spec: &mut Spec, fields: &Fields, key: &str, absent: bool, targets: &[Target]) -> Result<()> {
    if fields.flag_or(key, absent)? {
        spec.biases.extend(targets);
    }
    Ok(())
}

/// The activation that `key` names in transformers' words.
pub(super) fn activation(fields: &Fields, key: &str, absent: &str) -> Result<Activation> {
    let word = fields.text(key, absent)?;
    match word {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => Err(fields.unsupported(format!(
            "`{key}` is `{}`: supported are `silu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu`",
            shown(word)
        ))),
    }
}

/// Nothing of the kind: refuses a flag that is set.
pub(super) fn refuse_flag(fields: &Fields, key: &str, reason: &str) -> Result<()> {
    match fields.flag(key)? {
        true => Err(fields.unsupported(format!("`{key}` is true: {reason}"))),
        false => Ok(()),
    }
}

/// Refuses a key that is set to anything but `null`.
pub(super) fn refuse_set(fields: &Fields, key: &str, reason: &str) -> Result<()> {
    match fields.get(key) {
        Some(value) => Err(fields.unsupported(format!("`{key}` is {}: {reason}", shown(&value.to_string())))),
        None => Ok(()),
    }
}

/// A window in every layer, where `sliding_window` is set.
pub(super) fn window_everywhere(spec: &mut Spec, fields: &Fields, absent: Option<usize>) -> Result<()> {
    let window = window(fields, absent)?;
    spec.blocks.iter_mut().for_each(|block| block.window = window);
    Ok(())
}

/// `sliding_window`; `null` means none.
pub(super) fn window(fields: &Fields, absent: Option<usize>) -> Result<Option<usize>> {
    match fields.map.contains_key("sliding_window") {
        false => Ok(absent),
        true => fields.optional_size("sliding_window", MAX_CONTEXT),
    }
}

/// Windows as `layer_types` places them, or as `absent` does; whether each layer has one.
pub(super) fn layer_types(
    spec: &mut Spec,
    fields: &Fields,
    window: Option<usize>,
    absent: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let key = "layer_types";
    let slides: Vec<bool> = match fields.get(key) {
        None => (0..spec.layers).map(absent).collect(),
        Some(value) => {
            let list = value.as_array().filter(|list| list.len() == spec.layers);
            let list = list.ok_or_else(|| {
                fields.impossible(key, value, &format!("a list with a word for each of {} layers", spec.layers))
            })?;
            let slides = |word: &serde_json::Value| match word.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(fields.unsupported(format!(
                    "`{key}` has {}: supported are `full_attention` and `sliding_attention`",
                    shown(&word.to_string())
                ))),
            };
            list.iter().map(slides).collect::<Result<_>>()?
        }
    };
    if slides.contains(&true) && window.is_none() {
        return Err(fields.wrong("layers slide, and `sliding_window` is missing", DAMAGED));
    }
    for (block, &slides) in spec.blocks.iter_mut().zip(&slides) {
        block.window = window.filter(|_| slides);
    }
    Ok(slides)
}
