//! Rotary positions in `config.json`: at the top level, or since transformers 5 in `rope_parameters`, and how they were
//! scaled for longer texts. Defaults are those of `transformers/modeling_rope_utils.py`, 5.23.

use serde_json::{Map, Value};

use super::common::{MAX_CONTEXT, MAX_FACTOR};
use super::fields::Fields;
use super::spec::{Rope, Scaling, Spec};
use crate::checkpoint::shown;
use crate::error::Result;

const LEAST_THETA: f64 = 1.0;
const MAX_THETA: f64 = 1e15;
const LEAST_FACTOR: f64 = 1e-3;

/// What a family says where `config.json` says nothing, and under which other names.
pub(super) struct Positions {
    pub theta: f64,
    pub theta_key: &'static str,
    /// Share of a head that turns; `None`: all of it, and a key that says otherwise is refused.
    pub partial: Option<f64>,
    pub partial_key: &'static str,
    /// `original_max_position_embeddings` at the top level, which some families have, with its default.
    pub original: Option<usize>,
}

pub(super) const WHOLE: Positions = Positions {
    theta: 10_000.0,
    theta_key: "rope_theta",
    partial: None,
    partial_key: "partial_rotary_factor",
    original: None,
};

/// Gives every layer the rotary positions that the whole model has.
pub(super) fn everywhere(spec: &mut Spec, fields: &Fields, positions: &Positions) -> Result<()> {
    spec.ropes = vec![rope(spec, fields, positions)?];
    spec.blocks.iter_mut().for_each(|block| block.rope = Some(0));
    Ok(())
}

/// The one kind of rotary positions that a model has.
pub(super) fn rope(spec: &Spec, fields: &Fields, positions: &Positions) -> Result<Rope> {
    let mut theta = Agreed::new(positions.theta_key, fields, optional(fields, positions.theta_key)?);
    let mut partial = match fields.get(positions.partial_key) {
        None => None,
        Some(_) => Some(fields.number(positions.partial_key, 0.0, 1.0, 1.0)?),
    };
    let mut scaling: Option<(&str, Scaling)> = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(map) = object(fields, key)? else { continue };
        if map.values().any(Value::is_object) {
            return Err(fields.unsupported(format!(
                "`{key}` differs between kinds of layers, which this family is not known to do"
            )));
        }
        let block = Fields { map, path: fields.path };
        theta.also(key, optional(&block, "rope_theta")?)?;
        if block.get("partial_rotary_factor").is_some() {
            partial = Some(block.number("partial_rotary_factor", 0.0, 1.0, 1.0)?);
        }
        let found = self::scaling(spec, fields, &block, key, positions)?;
        match &scaling {
            Some((first, other)) if *other != found && found != Scaling::None && *other != Scaling::None => {
                let what = format!("`{first}` and `{key}` scale rotary positions differently");
                return Err(fields.wrong(what, "keep the one that the model was trained with"));
            }
            Some((_, other)) if *other != Scaling::None => {}
            _ => scaling = Some((key, found)),
        }
    }
    let width = match (positions.partial, partial) {
        (None, None | Some(1.0)) => spec.head_width,
        (None, Some(share)) => {
            return Err(
                fields.unsupported(format!("`{}` is {share}: this family turns the whole head", positions.partial_key))
            );
        }
        (Some(absent), share) => (spec.head_width as f64 * share.unwrap_or(absent)) as usize,
    };
    let scaling = scaling.map_or(Scaling::None, |(_, scaling)| scaling);
    checked(fields, Rope { theta: theta.value.unwrap_or(positions.theta), width, scaling })
}

/// Rotary positions of one kind of layers, from its own block or, without one, plain ones with this base.
pub(super) fn rope_of_block(
    spec: &Spec,
    fields: &Fields,
    key: &str,
    block: Option<&Map<String, Value>>,
    theta: f64,
) -> Result<Rope> {
    let Some(map) = block else {
        return checked(fields, Rope { theta, width: spec.head_width, scaling: Scaling::None });
    };
    let block = Fields { map, path: fields.path };
    let theta = optional(&block, "rope_theta")?.unwrap_or(theta);
    let scaling = scaling(spec, fields, &block, key, &WHOLE)?;
    checked(fields, Rope { theta, width: spec.head_width, scaling })
}

/// The object under `key`.
pub(super) fn object<'a>(fields: &Fields<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(value) => Err(fields.impossible(key, value, "an object")),
    }
}

/// A base of frequencies, where the key is there.
pub(super) fn optional(fields: &Fields, key: &str) -> Result<Option<f64>> {
    fields.get(key).map(|_| fields.number(key, LEAST_THETA, MAX_THETA, LEAST_THETA)).transpose()
}

/// A number that may stand in several places, and must be the same in all.
struct Agreed<'a, 'b> {
    key: &'static str,
    fields: &'b Fields<'a>,
    value: Option<f64>,
}

impl<'a, 'b> Agreed<'a, 'b> {
    fn new(key: &'static str, fields: &'b Fields<'a>, value: Option<f64>) -> Self {
        Agreed { key, fields, value }
    }

    fn also(&mut self, place: &str, value: Option<f64>) -> Result<()> {
        match (self.value, value) {
            (Some(outer), Some(inner)) if outer != inner => {
                let what = format!("`{}` is {outer} in one place and {inner} in `{place}`", self.key);
                Err(self.fields.wrong(what, "keep the one that the model was trained with"))
            }
            _ => {
                self.value = self.value.or(value);
                Ok(())
            }
        }
    }
}

/// The scaling that a block describes.
fn scaling(spec: &Spec, fields: &Fields, block: &Fields, key: &str, positions: &Positions) -> Result<Scaling> {
    let kind = block.text("rope_type", block.text("type", "default")?)?;
    let factor = |key: &str| block.number(key, LEAST_FACTOR, MAX_FACTOR, 1.0);
    let needed = |key: &str| match block.get(key) {
        Some(_) => factor(key),
        None => Err(block.wrong(format!("`{key}` is missing in rotary positions of the kind `{kind}`"), INCOMPLETE)),
    };
    // What the family has at the top level goes first, then the block's own, then the whole context.
    let original = || -> Result<usize> {
        let name = "original_max_position_embeddings";
        let own = block.optional_size(name, MAX_CONTEXT)?;
        let context = match positions.original {
            Some(absent) => fields.optional_size(name, MAX_CONTEXT)?.unwrap_or(absent),
            None => own.unwrap_or(spec.context),
        };
        match context {
            0 | 1 => Err(block.wrong(format!("`{name}` is 1: nothing can be scaled from it"), INCOMPLETE)),
            context => Ok(context),
        }
    };
    let ratio = |context: usize| match block.get("factor") {
        Some(_) => factor("factor"),
        None => Ok(spec.context as f64 / context as f64),
    };
    match kind {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: needed("factor")? }),
        "dynamic" => Ok(Scaling::Dynamic { factor: needed("factor")?, context: spec.context }),
        "llama3" => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                let what = format!("`low_freq_factor`, {low}, is not below `high_freq_factor`, {high}");
                return Err(block.wrong(what, INCOMPLETE));
            }
            Ok(Scaling::Llama3 { factor: needed("factor")?, low, high, context: original()? })
        }
        // Phi-3's early configs say `yarn` and `su`.
        "longrope" | "su" | "yarn" if kind != "yarn" || positions.original.is_some() => {
            let context = original()?;
            let factor = ratio(context)?;
            let attention = match block.get("attention_factor") {
                Some(_) => self::attention(block)?,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (context as f64).ln()).sqrt(),
            };
            Ok(Scaling::Long { short: factors(block, "short_factor")?, long: factors(block, "long_factor")?, context, attention })
        }
        "yarn" => {
            let context = original()?;
            let factor = ratio(context)?;
            let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let mscale = |key: &str| match block.get(key) {
                None => Ok(None),
                Some(_) => block.number(key, 0.0, MAX_FACTOR, 0.0).map(|m| Some(m).filter(|m| *m > 0.0)),
            };
            let attention = match (mscale("mscale")?, mscale("mscale_all_dim")?) {
                _ if block.get("attention_factor").is_some() => self::attention(block)?,
                (Some(m), Some(all)) => scale(m) / scale(all),
                _ => scale(1.0),
            };
            Ok(Scaling::Yarn {
                factor,
                context,
                fast: block.number("beta_fast", LEAST_FACTOR, MAX_FACTOR, 32.0)?,
                slow: block.number("beta_slow", LEAST_FACTOR, MAX_FACTOR, 1.0)?,
                truncate: block.flag_or("truncate", true)?,
                attention,
            })
        }
        _ => Err(fields.unsupported(format!(
            "`{key}` is of the kind `{}`: supported are `default`, `linear`, `dynamic`, `llama3`, `yarn` and `longrope`",
            shown(kind)
        ))),
    }
}

const INCOMPLETE: &str = "`config.json` is damaged: download or copy it again";

fn attention(block: &Fields) -> Result<f64> {
    block.number("attention_factor", LEAST_FACTOR, MAX_FACTOR, 1.0)
}

/// A factor for every pair of channels.
fn factors(block: &Fields, key: &str) -> Result<Vec<f64>> {
    const MAX_FACTORS: usize = 1 << 12;
    let Some(value) = block.get(key) else {
        return Err(block.wrong(format!("`{key}` is missing in rotary positions of the kind `longrope`"), INCOMPLETE));
    };
    let number = |v: &Value| v.as_f64().filter(|x| (LEAST_FACTOR..=MAX_FACTOR).contains(x));
    let list =
        value.as_array().filter(|list| list.len() <= MAX_FACTORS).and_then(|list| list.iter().map(number).collect());
    list.ok_or_else(|| block.impossible(key, value, &format!("a list of numbers from {LEAST_FACTOR} to {MAX_FACTOR}")))
}

/// Whether the numbers go together.
fn checked(fields: &Fields, rope: Rope) -> Result<Rope> {
    let Rope { theta, width, scaling } = &rope;
    if *width == 0 || !width.is_multiple_of(2) {
        let what = format!("rotary positions on {width} channels of a head: they need pairs");
        return Err(fields.wrong(what, INCOMPLETE));
    }
    match scaling {
        Scaling::Long { short, long, .. } if short.len() != width / 2 || long.len() != width / 2 => {
            let what = format!(
                "`short_factor` and `long_factor` have {} and {} numbers, and rotary positions {} pairs",
                short.len(),
                long.len(),
                width / 2
            );
            Err(fields.wrong(what, INCOMPLETE))
        }
        Scaling::Yarn { .. } if *theta <= 1.0 => {
            Err(fields.wrong("`rope_theta` is 1: rotary positions of the kind `yarn` need more", INCOMPLETE))
        }
        Scaling::Dynamic { .. } if *width == 2 => {
            Err(fields.wrong("rotary positions of the kind `dynamic` need more than one pair of channels", INCOMPLETE))
        }
        _ => Ok(rope),
    }
}
