//! `subquad inspect`

use std::collections::BTreeMap;

use serde::Serialize;

use super::architecture;
use super::format::{self, Align, table};
use super::opened::Opened;
use super::printer::Printer;
use crate::arch::{self, Spec};
use crate::checkpoint::CONFIG;
use crate::mixer::Mixer;
use crate::model::{Conversion, Student, softmax};
use crate::{Error, Result};

/// Show architecture, sizes, and the mixers of a converted model, from its headers alone
#[derive(clap::Args)]
pub(super) struct Args {
    /// A folder, a run, builtin:NAME, or OWNER/NAME[@REVISION] on the Hub
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Inspection {
    model: String,
    /// Without the mixers'.
    parameters: usize,
    /// All of the architecture.
    #[serde(flatten)]
    spec: Spec,
    /// Of the first kind of rotary positions.
    rope_theta: Option<f64>,
    norm_eps: f64,
    /// Of all tensors.
    bytes: u64,
    tensors: usize,
    dtypes: BTreeMap<String, Amount>,
    files: BTreeMap<String, Amount>,
    /// Of a converted model.
    #[serde(skip_serializing_if = "Option::is_none")]
    conversion: Option<Converted>,
}

#[derive(Default, Serialize)]
struct Amount {
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Converted {
    #[serde(flatten)]
    conversion: Conversion,
    /// Layers whose attention was replaced.
    replaced_layers: Vec<usize>,
    mixer_parameters: usize,
    /// Bytes of state per sequence once the context is full, and of the teacher's keys and values in the same numbers.
    state_bytes: usize,
    teacher_state_bytes: usize,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let inspection = Inspection::of(&Opened::open(&self.model, None)?)?;
        if self.json { printer.json(&inspection) } else { printer.data(inspection.rendered()) }
    }
}

impl Inspection {
    fn of(opened: &Opened) -> Result<Inspection> {
        let Opened { checkpoint, spec, .. } = opened;
        let (mut dtypes, mut files) = (BTreeMap::<String, Amount>::new(), BTreeMap::<String, Amount>::new());
        for tensor in checkpoint.tensors() {
            let dtype = format!("{:?}", tensor.dtype).to_lowercase();
            for amount in [dtypes.entry(dtype).or_default(), files.entry(tensor.file.clone()).or_default()] {
                amount.tensors += 1;
                amount.bytes += tensor.bytes as u64;
            }
        }
        Ok(Inspection {
            model: opened.label(),
            parameters: spec.parameters(),
            spec: spec.clone(),
            rope_theta: spec.ropes.first().map(|rope| rope.theta),
            norm_eps: spec.norm.eps,
            bytes: checkpoint.total_bytes(),
            tensors: checkpoint.tensors().len(),
            dtypes,
            files,
            conversion: Converted::of(opened)?,
        })
    }

    fn rendered(&self) -> String {
        let spec = &self.spec;
        let tied = if spec.tied { ", tied head" } else { "" };
        let parameters = format::count(self.parameters as u64);
        let mut lines = vec![
            ("model", self.model.clone()),
            ("family", spec.family.to_string()),
            ("parameters", format!("{parameters} in {} tensors, {}", self.tensors, format::bytes(self.bytes))),
            ("layers", spec.layers.to_string()),
            ("width", spec.width.to_string()),
        ];
        lines.extend(architecture::lines(spec));
        lines.push(("vocabulary", format!("{}{tied}", format::count(spec.vocab as u64))));
        lines.push(("context", format::count(spec.context as u64)));
        let amount = |(name, amount): (&String, &Amount)| format!("{name} {}", format::bytes(amount.bytes));
        lines.push(("types", self.dtypes.iter().map(amount).collect::<Vec<_>>().join(", ")));
        let files = match self.files.len() {
            0..=4 => self.files.iter().map(amount).collect::<Vec<_>>().join(", "),
            n => format!("{n} shards"),
        };
        lines.push(("files", files));
        if let Some(converted) = &self.conversion {
            lines.extend(converted.rendered());
        }
        let rows: Vec<Vec<String>> = lines.into_iter().map(|(name, value)| vec![name.to_string(), value]).collect();
        table(&[Align::Left, Align::Left], &rows)
    }
}

impl Converted {
    fn of(Opened { checkpoint, spec, .. }: &Opened) -> Result<Option<Converted>> {
        let path = checkpoint.files().place(CONFIG);
        let Some(block) = arch::conversion(checkpoint.config(), &path)? else { return Ok(None) };
        let broken = |what: String| {
            Error::config(&path, format!("the block `subquad` cannot be read: {what}"), "export the model again")
        };
        let conversion: Conversion =
            serde_json::from_value(block.clone().into()).map_err(|error| broken(error.to_string()))?;
        let outline = Student::without_weights(conversion, spec).map_err(|error| broken(error.to_string()))?;
        let added = outline.new_tensors();
        if let Some((name, ..)) = added.iter().find(|(name, ..)| checkpoint.info(name).is_none()) {
            return Err(checkpoint.missing(name, |_| true));
        }
        Ok(Some(Converted {
            mixer_parameters: added.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum(),
            state_bytes: outline.state_bytes(spec.context),
            teacher_state_bytes: (0..spec.layers).map(|l| softmax(spec, l).state_bytes(spec.context)).sum(),
            replaced_layers: (0..spec.layers).filter(|&layer| outline.replaced(layer)).collect(),
            conversion: outline.conversion,
        }))
    }

    fn rendered(&self) -> Vec<(&'static str, String)> {
        let Converted { conversion, replaced_layers, .. } = self;
        let window = conversion.window.map_or(String::new(), |window| {
            let sinks = if window.sinks > 0 { format!(", {} sinks", window.sinks) } else { String::new() };
            format!(", window {} ({}{sinks})", window.size, window.combine.name())
        });
        let options: String = conversion
            .options
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!(", {name} {}", value.as_str().map_or(value.to_string(), String::from)))
            .collect();
        let mut lines = vec![
            ("converted", format!("from {}", conversion.teacher)),
            ("mixer", format!("{}{window}{options}", conversion.mixer)),
            ("replaced", format!("layers {}", format::ranges(replaced_layers))),
        ];
        if !conversion.softmax_layers.is_empty() {
            let mut kept = conversion.softmax_layers.clone();
            kept.sort_unstable();
            lines.push(("softmax", format!("layers {}", format::ranges(&kept))));
        }
        lines.push(("added", format!("{} parameters", format::count(self.mixer_parameters as u64))));
        let state = [self.state_bytes, self.teacher_state_bytes].map(|n| format::bytes(n as u64));
        lines.push(("state", format!("{} per sequence at full context; softmax: {}", state[0], state[1])));
        lines
    }
}
