//! What can be said of a mixer without any weights: computed from the mixer itself, at the place where it would stand.

use serde::Serialize;
use serde_json::{Value, json};

use super::format::{self, Align, table};
use crate::Result;
use crate::arch::Spec;
use crate::mixer::{
    CalibrationParam, CalibrationUpdate, Granularity, LayerDims, Mixer, NewTensor, OptionKind, OptionSpec, Options,
    Registration, Softmax, Window,
};

/// The window of the example recipe, LoLCATs'.
const WINDOW: usize = 64;

/// Layers that mixers are put in.
pub(super) struct Place {
    name: String,
    sites: Vec<LayerDims>,
}

impl Place {
    /// Those of Llama 3.2 1B.
    pub fn example() -> Place {
        let layers = 16;
        let layer_dims = |layer| LayerDims { heads: 32, kv_heads: 8, width: 64, model_width: 2048, layer, layers };
        Place { name: "Llama 3.2 1B".into(), sites: (0..layers).map(layer_dims).collect() }
    }

    /// Those of a model.
    pub fn of(name: &str, spec: &Spec) -> Place {
        Place { name: name.into(), sites: (0..spec.layers).map(|layer| spec.layer_dims(layer)).collect() }
    }

    fn first(&self) -> LayerDims {
        self.sites[0]
    }

    /// `the 16 layers of Llama 3.2 1B (32 query heads, ...)`
    pub fn words(&self) -> String {
        let LayerDims { heads, kv_heads, width, model_width, .. } = self.first();
        format!(
            "the {} layers of {} ({heads} query heads on {kv_heads} key-value heads, head width {width}, model width \
             {model_width})",
            self.sites.len(),
            self.name
        )
    }

    fn json(&self) -> Value {
        let LayerDims { heads, kv_heads, width, model_width, layers, .. } = self.first();
        json!({
            "name": self.name, "layers": layers, "heads": heads, "kv_heads": kv_heads, "head_width": width,
            "width": model_width,
        })
    }

    /// Keys and values of a token, in f32, shared by the query heads.
    pub fn softmax_bytes_per_head_and_token(&self) -> usize {
        Softmax::new(self.first()).state_bytes(1) / self.first().heads
    }
}

/// The least and the most that layers have.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Range {
    least: usize,
    most: usize,
}

impl Range {
    fn of(numbers: impl Iterator<Item = usize> + Clone) -> Range {
        Range { least: numbers.clone().min().unwrap_or(0), most: numbers.max().unwrap_or(0) }
    }

    fn shown(self, show: impl Fn(u64) -> String) -> String {
        let (least, most) = (show(self.least as u64), show(self.most as u64));
        if least == most { least } else { format!("{least} to {most}") }
    }

    pub fn bytes(self) -> String {
        self.shown(format::bytes)
    }

    pub fn count(self) -> String {
        self.shown(format::count)
    }
}

/// A tensor that it adds.
#[derive(Serialize)]
struct Added {
    name: &'static str,
    shape: Vec<usize>,
    /// How it starts, in words.
    initial: String,
}

impl From<NewTensor> for Added {
    fn from(NewTensor { name, shape, initial }: NewTensor) -> Added {
        Added { name, shape, initial: initial.to_string() }
    }
}

/// All of it; `--json` prints it as it is.
#[derive(Serialize)]
pub(super) struct Mechanism {
    pub name: &'static str,
    pub summary: &'static str,
    pub formula: &'static str,
    pub paper: &'static str,
    /// Whether q and k come to it after the teacher's RoPE.
    rope: bool,
    inherits: &'static str,
    /// Ways in which a window can stand beside it, its default first.
    windows: Vec<&'static str>,
    options: Vec<Value>,
    /// What the rest was counted for.
    place: Value,
    /// Of the last layer.
    tensors: Vec<Added>,
    /// What calibration tries, one after the other.
    calibration_params: Vec<Value>,
    /// What calibration scales the output by.
    scale: Option<&'static str>,
    pub state_bytes_per_head: Range,
    pub added_parameters: Range,
    recipe: String,
    #[serde(skip)]
    registration: &'static Registration,
}

impl Mechanism {
    /// With its defaults, without a window.
    pub fn new(registration: &'static Registration, place: &Place) -> Result<Mechanism> {
        let options = Options::new(registration.options, &Default::default())?;
        let build = |layer_dims: &LayerDims| (registration.build)(&options, *layer_dims, None);
        let mixers = place.sites.iter().map(build).collect::<Result<Vec<Box<dyn Mixer>>>>()?;
        let added = |m: &dyn Mixer| m.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
        let last = mixers.last().map(|mixer| (mixer.tensors(), mixer.calibration_params(), mixer.scale().name()));
        let (tensors, calibration_params, scale) = last.unwrap_or_default();
        Ok(Mechanism {
            name: registration.name,
            summary: registration.summary,
            formula: registration.formula,
            paper: registration.paper,
            rope: registration.rope,
            inherits: registration.inherits,
            windows: registration.combine.iter().map(|combine| combine.name()).collect(),
            options: registration.options.iter().map(option).collect(),
            place: place.json(),
            tensors: tensors.into_iter().map(Added::from).collect(),
            calibration_params: calibration_params.iter().map(calibration_param).collect(),
            scale,
            state_bytes_per_head: Range::of(mixers.iter().map(|m| m.state_bytes(1) / place.first().heads)),
            added_parameters: Range::of(mixers.iter().map(|m| added(&**m))),
            recipe: recipe(registration),
            registration,
        })
    }

    /// For people.
    pub fn explained(&self, place: &Place) -> String {
        let mut out = format!("{}: {}\n\n", self.name, self.summary);
        for equation in self.formula.split(";  ") {
            out += &format::wrapped(equation, "  ", "    ");
        }
        let (state, softmax) = (self.state_bytes_per_head, place.softmax_bytes_per_head_and_token());
        let rope = if self.rope { "after RoPE" } else { "before RoPE" };
        let combine: Vec<String> = self.windows.iter().map(|name| format!("`{name}`")).collect();
        let facts = [
            ("paper", self.paper.to_string()),
            ("place", place.words()),
            (
                "state",
                format!(
                    "{} for each of {} heads, as much as softmax keeps for {} tokens",
                    state.bytes(),
                    place.first().heads,
                    Range { least: state.least.div_ceil(softmax), most: state.most.div_ceil(softmax) }.count()
                ),
            ),
            ("adds", format!("{} parameters to a layer", self.added_parameters.count())),
            ("q, k, v", format!("{rope}; {}; the o projection stays", self.inherits)),
            ("window", format!("alone, or beside one combined as {}", combine.join(" or "))),
        ];
        for (name, text) in facts {
            out += &format!("\n{}", format::wrapped(&format!("{name}: {text}"), "", "  ").trim_end());
        }
        out += &format!("\n\n{}{}{}", self.tensors_explained(), self.calibration_explained(), self.options_explained());
        out + "in a recipe:\n\n" + &self.recipe
    }

    fn tensors_explained(&self) -> String {
        if self.tensors.is_empty() {
            return "no new tensors\n\n".into();
        }
        let head = ["new tensor", "shape", "starts as"].map(String::from).to_vec();
        let row = |t: &Added| vec![t.name.to_string(), format!("{:?}", t.shape), t.initial.clone()];
        let rows: Vec<Vec<String>> = [head].into_iter().chain(self.tensors.iter().map(row)).collect();
        table(&[Align::Left, Align::Left, Align::Left], &rows) + "\n"
    }

    fn calibration_explained(&self) -> String {
        let numbers = |values: &Value| {
            values.as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join(", ")
        };
        let mut steps: Vec<String> = self
            .calibration_params
            .iter()
            .map(|calibration_param| {
                let how = if calibration_param["how"] == "set" { "set to" } else { "times" };
                let per = text(&calibration_param["per"]);
                format!(
                    "{} {how} {}, whichever is best for the {per}",
                    text(&calibration_param["tensor"]),
                    numbers(&calibration_param["values"])
                )
            })
            .collect();
        steps.extend(self.scale.map(|scale| format!("{scale}, head by head, to the teacher's output")));
        if steps.is_empty() {
            return "nothing for calibration to set\n\n".into();
        }
        let mut out = "calibration sets\n".to_string();
        for step in steps {
            out += &format::wrapped(&step, "  ", "    ");
        }
        out + "\n"
    }

    fn options_explained(&self) -> String {
        if self.registration.options.is_empty() {
            return "no options\n\n".into();
        }
        let mut out = "options, under [student]\n".to_string();
        for option in self.registration.options {
            let default = match option.default {
                "null" => String::new(),
                default => format!(", default {default}"),
            };
            out += &format!("\n  {}  {}{default}\n", option.name, values(option));
            out += &format::wrapped(option.help, "    ", "    ");
        }
        out + "\n"
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn values(option: &OptionSpec) -> String {
    match option.kind {
        OptionKind::Integer { min, max } => format!("a whole number from {min} to {max}"),
        OptionKind::Number { min, max } => format!("a number from {min} to {max}"),
        OptionKind::Choice(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "),
        OptionKind::Flag => "true or false".into(),
    }
}

fn option(option: &OptionSpec) -> Value {
    let mut described = match option.kind {
        OptionKind::Integer { min, max } => json!({ "type": "integer", "min": min, "max": max }),
        OptionKind::Number { min, max } => json!({ "type": "number", "min": min, "max": max }),
        OptionKind::Choice(words) => json!({ "type": "string", "values": words }),
        OptionKind::Flag => json!({ "type": "boolean" }),
    };
    described["name"] = option.name.into();
    described["default"] = option.default_value();
    described["help"] = option.help.into();
    described
}

fn calibration_param(calibration_param: &CalibrationParam) -> Value {
    let per = match calibration_param.granularity {
        Granularity::Head => "head",
        Granularity::KvHead => "key-value head",
    };
    let how = match calibration_param.update {
        CalibrationUpdate::Set => "set",
        CalibrationUpdate::Multiply => "multiply",
    };
    // As they are written, not as an f64 has them.
    let values = calibration_param.values.iter().map(|value| value.to_string().parse::<f64>().unwrap_or_default());
    json!({ "tensor": calibration_param.tensor, "per": per, "how": how, "values": values.collect::<Vec<_>>() })
}

/// The table `[student]` with every default that does not depend on the teacher, and a window.
fn recipe(registration: &Registration) -> String {
    let mut out = format!("[student]\nmixer = \"{}\"\n", registration.name);
    if let Some(&combine) = registration.combine.first() {
        let Window { size, combine, .. } = Window { size: WINDOW, sinks: 0, combine };
        out += &format!("window = {{ size = {size}, combine = \"{}\" }}  # or without this line\n", combine.name());
    }
    for option in registration.options.iter().filter(|option| option.default != "null") {
        out += &format!("{} = {}\n", option.name, option.default);
    }
    out
}
