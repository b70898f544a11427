//! `subquad sweep`

use std::path::PathBuf;

use super::check::RecipeArgs;
use super::format;
use super::printer::Printer;
use super::progress::Works;
use crate::plan::{Machine, run_folder};
use crate::run::is_run;
use crate::sweep::{Combination, Found, Row, Sweep, ZeroTokens};
use crate::{Error, Result};

/// Run a recipe with every mixer in turn and compare them
///
/// Each combination of a mixer, at its defaults, and a window is a run of its own in DIR. Its results go to
/// DIR/MIXER-windowN.json or DIR/MIXER-alone.json; --table needs only these files. The same command
/// continues a sweep that was stopped, and several processes may work in one DIR. Models are not written.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Mixers in place of the recipe's own, separated by commas, or `all`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "all")]
    mixers: Vec<String>,
    /// Windows beside each mixer: `none`, or a number of keys; separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none,64")]
    windows: Vec<String>,
    /// The folder of all runs [default: runs/NAME of the recipe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Run nothing; print the table of the results that exist
    #[arg(long)]
    table: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let combinations = Combination::all(&self.mixers, &self.windows)?;
        let recipe = self.recipe.load()?;
        let folder = self.out.clone().unwrap_or_else(|| run_folder(&recipe));
        if is_run(&folder) {
            let hint = "choose another folder with `--out`: a sweep has a folder for each of its runs";
            return Err(Error::run(folder, "this is the folder of a single run", hint));
        }
        let sweep = Sweep { recipe: &recipe, folder: &folder, combinations: &combinations };
        if !self.table {
            sweep.run(Machine::measure()?, &mut Works::new(printer))?;
        }
        let found = sweep.found()?;
        for (n, what) in [(found.missing, "not run yet"), (found.other, "run with other settings, and left out")] {
            if n > 0 {
                printer.warn(format_args!("{n} of {} combinations: {what}", combinations.len()));
            }
        }
        printer.note("");
        if self.json { printer.json(&found.rows) } else { printer.data(rendered(&found)) }
    }
}

/// Markdown: what training has reached, what calibration alone does, and what has come to no end.
fn rendered(found: &Found) -> String {
    let head = "mixer | window | ratio | KL | top-1 | layer error | state | transfer tokens/s | LoRA tokens/s";
    let mut out = table(head, found.rows.iter().map(reached));
    if let Some((evaluation, sizes)) = found.rows.iter().find_map(|row| Some((row.evaluation.as_ref()?, row.sizes?))) {
        out += &format!(
            "\n{}: {} tokens predicted in {}",
            evaluation.text,
            format::count(evaluation.tokens),
            evaluation.windows_in_words()
        );
        if let Some(perplexity) = evaluation.teacher_perplexity {
            let state = format::bytes(sizes.teacher_state_bytes as u64);
            out += &format!("; the teacher's perplexity is {perplexity:.2}, its keys and values have {state}");
        }
        out += ".\n";
    }
    let zero: Vec<(&Row, &ZeroTokens)> =
        found.rows.iter().filter_map(|row| Some((row, row.zero_tokens.as_ref()?))).collect();
    if !zero.is_empty() {
        let head =
            "mixer | window | layer error before | after | perplexity before | after | silent mixer | bare window";
        out += &format!("\nCalibrated, no token trained on:\n\n{}", table(head, zero.iter().map(calibrated)));
        let against: Vec<bool> = zero.iter().filter_map(|(_, zero)| zero.beats_silence()).collect();
        let better = against.iter().filter(|better| **better).count();
        out += &format!("\n{better} of {} calibrated students are better than with silent mixers.\n", against.len());
    }
    let failed = found.rows.iter().filter_map(|row| Some((row, row.failure.as_ref()?)));
    let failed: Vec<String> =
        failed.map(|(row, failure)| format!("- {}, window {}: {failure}\n", row.mixer, window(row))).collect();
    if !failed.is_empty() {
        out += &format!("\nWithout a result:\n\n{}", failed.concat());
    }
    out
}

fn table(head: &str, rows: impl Iterator<Item = Vec<String>>) -> String {
    let columns = head.split(" | ").count();
    let lines = rows.map(|cells| format!("| {} |\n", cells.join(" | ")));
    format!("| {head} |\n|{}\n{}", "---|".repeat(columns), lines.collect::<String>())
}

fn reached(row: &Row) -> Vec<String> {
    let score = row.evaluation.as_ref().map(|evaluation| evaluation.model);
    vec![
        row.mixer.clone(),
        window(row),
        cell(row.ratio, |x| format!("{x:.3}")),
        cell(score.and_then(|s| s.kl), |x| format!("{x:.4}")),
        cell(score.and_then(|s| s.top1), |x| format!("{:.1}%", 100.0 * x)),
        cell(row.layer_error, |x| format!("{x:.3}")),
        cell(row.sizes, |s| format::bytes(s.state_bytes as u64)),
        cell(row.transfer_tokens_per_second, |x| format::count(x.round() as u64)),
        cell(row.lora_tokens_per_second, |x| format::count(x.round() as u64)),
    ]
}

fn calibrated((row, zero): &(&Row, &ZeroTokens)) -> Vec<String> {
    let error = |x| cell(x, |x: f64| format!("{x:.3}"));
    let perplexity = |x: f64| format!("{x:.1}");
    vec![
        row.mixer.clone(),
        window(row),
        error(zero.layer_error_before),
        error(zero.layer_error_after),
        perplexity(zero.perplexity_before),
        perplexity(zero.perplexity_after),
        cell(zero.silent_mixer, perplexity),
        cell(zero.bare_window, perplexity),
    ]
}

/// `64, joint`
fn window(row: &Row) -> String {
    let combine = row.sizes.and_then(|sizes| sizes.combine).map(|combine| format!(", {}", combine.name()));
    row.window.map_or("none".into(), |size| format!("{size}{}", combine.unwrap_or_default()))
}

fn cell<T>(value: Option<T>, shown: impl Fn(T) -> String) -> String {
    value.map_or("-".into(), shown)
}
