//! `subquad plan`

use std::path::PathBuf;

use super::check::RecipeArgs;
use super::format::{self, Align, table};
use super::printer::Printer;
use crate::Result;
use crate::plan::{Machine, Plan, run_folder};
use crate::recipe::Recipe;

/// Show the stages, memory, disk and time of a recipe, without running it
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A recipe and where it runs.
#[derive(clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The run folder [default: runs/NAME of the recipe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl RunArgs {
    /// The plan for this machine, with its warnings said. What cannot work is refused here.
    pub fn plan(&self, printer: &Printer) -> Result<(Recipe, Plan)> {
        let recipe = self.recipe.load()?;
        let folder = self.out.clone().unwrap_or_else(|| run_folder(&recipe));
        let plan = Plan::new(&recipe, &folder, Machine::measure()?)?;
        plan.notes.iter().for_each(|note| printer.warn(note));
        Ok((recipe, plan))
    }
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let (_, plan) = self.run.plan(printer)?;
        if self.json {
            return printer.json(&plan);
        }
        printer.data(rendered(&plan))
    }
}

fn rendered(plan: &Plan) -> String {
    let (teacher, student) = (&plan.teacher, &plan.student);
    let window = student.window.map(|w| format!(" beside a softmax window of {}", w.size)).unwrap_or_default();
    let kept = match student.softmax.is_empty() {
        true => String::new(),
        false => format!("; layers {} keep softmax", format::ranges(&student.softmax)),
    };
    let mut out = format!(
        "teacher  {} ({}, {} parameters, {} layers, context {})\n",
        teacher.model.display(),
        teacher.family,
        format::count(teacher.parameters as u64),
        teacher.layers,
        format::count(teacher.context as u64),
    );
    out += &format!("student  {}{window} in layers {}{kept}\n", student.mixer, format::ranges(&student.replaced));
    out += &format!(
        "state    {} of a sequence of {} tokens; the teacher's keys and values: {}\n",
        format::bytes(student.state_bytes as u64),
        format::count(teacher.context as u64),
        format::bytes(student.teacher_state_bytes as u64),
    );
    out += &format!("\n{}", new_tensors(plan));
    out += &format!("\n{}", stages(plan));
    let totals = &plan.totals;
    out += &format!(
        "\ntotal    {} tokens in {} steps; {} of memory, {} of disk, about {} on this machine\n",
        format::short(totals.tokens as f64),
        format::count(totals.steps),
        format::bytes(totals.memory),
        format::bytes(totals.disk),
        format::seconds(totals.seconds),
    );
    if plan.download > 0 {
        out += &format!("download {} from the Hub, first\n", format::bytes(plan.download));
    }
    out += &format!("machine  {} threads, {:.0} GFLOP/s measured\n", plan.machine.threads, plan.machine.speed / 1e9);
    out += &format!("run      {}\nmodel    {}\n", plan.folder.display(), plan.export.folder.display());
    out
}

/// One row per kind of tensor that the mixers add: layers share shapes.
fn new_tensors(plan: &Plan) -> String {
    let mut rows = vec![["new tensor", "layers", "shape", "starts as"].map(String::from).to_vec()];
    let mut names: Vec<&str> = vec![];
    for tensor in &plan.student.tensors {
        if !names.contains(&tensor.short_name) {
            names.push(tensor.short_name);
        }
    }
    for name in names {
        let of_name: Vec<_> = plan.student.tensors.iter().filter(|t| t.short_name == name).collect();
        let layers: Vec<usize> = of_name.iter().map(|t| t.layer).collect();
        if let Some(first) = of_name.first() {
            rows.push(vec![
                name.to_string(),
                format::ranges(&layers),
                format!("{:?}", first.shape),
                first.initial.clone(),
            ]);
        }
    }
    table(&[Align::Left, Align::Left, Align::Left, Align::Left], &rows)
}

fn stages(plan: &Plan) -> String {
    let head = ["stage", "tokens", "steps", "trains", "memory", "disk", "time"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let some = |n: u64, text: String| if n == 0 { "-".to_string() } else { text };
    for stage in &plan.stages {
        rows.push(vec![
            stage.folder.clone(),
            some(stage.tokens, format::short(stage.tokens as f64)),
            some(stage.steps, format::count(stage.steps)),
            some(stage.parameters, format::short(stage.parameters as f64)),
            format::bytes(stage.memory),
            some(stage.disk, format::bytes(stage.disk)),
            format::seconds(stage.seconds),
        ]);
    }
    let export = &plan.export;
    let dash = || "-".to_string();
    rows.push(vec![
        "export".into(),
        dash(),
        dash(),
        dash(),
        format::bytes(export.memory),
        format::bytes(export.bytes),
        format::seconds(export.seconds),
    ]);
    let right = || Align::Right;
    table(&[Align::Left, right(), right(), right(), right(), right(), right()], &rows)
}
