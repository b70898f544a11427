//! Exported folders with what this crate makes of them, for tests/interop/*.py: every mixer alone and beside a window,
//! and every family of teachers. `cargo run --release --example interop_cases -- FOLDER`
//!
//! ```text
//! FOLDER/NAME/model/                 the export, f32
//! FOLDER/NAME/expected.safetensors   ids [2, T], logits [2, T, vocab]; prompt, lengths [3] and greedy [3, N]: for each
//!                                    of three prompts, the prompt's first tokens, the N that follow
//! ```

mod draw;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use subquad::arch::{FORMAT, Scaling, Spec};
use subquad::checkpoint::{Checkpoint, Location, save_tensors};
use subquad::export::{ExportOptions, export};
use subquad::mixer::{Combine, MIXERS, Window};
use subquad::model::{Adapter, Conversion, Model, Sampler, Session, Target, View};
use subquad::progress::Silent;

type Done<T> = Result<T, Box<dyn Error>>;

/// Tokens of the texts whose logits are compared, and of each continuation.
const TOKENS: usize = 150;
const GREEDY: usize = 64;
/// Of the prompts.
const LENGTHS: [usize; 3] = [1, 9, 37];

/// A teacher, opened.
struct Teacher {
    name: String,
    checkpoint: Checkpoint,
    model: Model,
    /// The same with other last bits.
    shaken: [Model; 2],
    /// What it says by itself.
    text: Vec<u32>,
}

impl Teacher {
    fn open(name: &str, location: &Location) -> Done<Teacher> {
        let checkpoint = Checkpoint::open(location)?;
        let spec = Spec::of(&checkpoint)?;
        let model = Model::load(&checkpoint, &spec)?;
        let shaken = [draw::shaken(&checkpoint, &spec, 0)?, draw::shaken(&checkpoint, &spec, 1)?];
        let mut teacher = Teacher { name: name.into(), model, shaken, checkpoint, text: vec![] };
        let mut sampler = Sampler::new(1.0, 1.0, 7);
        for _ in 0..5 {
            let mut session = Session::new(View::teacher(&teacher.model));
            let mut id = 1;
            for _ in 0..teacher.tokens() {
                teacher.text.push(id);
                id = sampler.next(&session.feed(&[id])?)?;
            }
        }
        Ok(teacher)
    }

    /// Of a text.
    fn tokens(&self) -> usize {
        TOKENS.min(self.longest())
    }

    /// Longest text that has one set of positions.
    fn longest(&self) -> usize {
        let spec = &self.model.spec;
        let steady = spec.ropes.iter().map(|rope| match rope.scaling {
            Scaling::Dynamic { context, .. } | Scaling::Long { context, .. } => context,
            _ => usize::MAX,
        });
        let learned = spec.positions.map_or(usize::MAX, |p| p.tokens());
        steady.min().unwrap_or(usize::MAX).min(learned)
    }
}

/// One conversion of a teacher.
struct Case<'a> {
    mixer: &'a str,
    /// Whether there is an adapter of some projections beside the model.
    adapted: bool,
    options: serde_json::Value,
    window: Option<Window>,
    softmax_layers: Vec<usize>,
}

impl Case<'_> {
    fn write(&self, name: &str, teacher: &Teacher, to: &Path) -> Done<()> {
        let model_type = teacher.checkpoint.config()["model_type"].as_str().unwrap_or_default();
        let conversion = Conversion {
            format: FORMAT,
            teacher_model_type: model_type.into(),
            teacher: teacher.name.clone(),
            mixer: self.mixer.into(),
            options: self.options.as_object().cloned().unwrap_or_default(),
            window: self.window,
            softmax_layers: self.softmax_layers.clone(),
            trained_sequence: None,
        };
        let (mut student, ids) = draw::student(conversion, teacher).map_err(|e| format!("{name}: {e}"))?;
        if self.adapted {
            let targets = vec![Target::Q, Target::V, Target::O, Target::Up, Target::Down];
            student.adapt(Adapter { rank: 3, alpha: 6.0, targets }, &teacher.model.spec, 1)?;
            for (name, tensor) in student.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
                *tensor = draw::random(name.len() as u64, tensor.dims(), 0.05)?;
            }
        }
        let folder = to.join(name);
        std::fs::create_dir_all(&folder)?;
        let options = ExportOptions { shard_bytes: 400_000, dtype: Some(DType::F32), base: None };
        let recipe = "# written by a test\n";
        let model = folder.join("model");
        export(&teacher.model, &student, &teacher.checkpoint, recipe, &options, &[], &model, &mut Silent)?;
        let expected = expected(&View::student(&teacher.model, &student), teacher, ids)?;
        save_tensors(&folder.join("expected.safetensors"), &expected, &BTreeMap::new())?;
        Ok(())
    }
}

fn expected(view: &View, teacher: &Teacher, ids: Vec<u32>) -> Done<BTreeMap<String, Tensor>> {
    let longest = teacher.longest();
    let tokens = teacher.tokens();
    let lengths = LENGTHS.map(|n| n.min(longest.saturating_sub(8)).max(1));
    let most = lengths[2];
    let count = GREEDY.min(longest.saturating_sub(most));
    let (mut prompts, mut greedy) = (vec![], vec![]);
    for (i, length) in lengths.into_iter().enumerate() {
        let prompt = teacher.text[(2 + i) * tokens..][..most].to_vec();
        let mut session = Session::new(*view);
        let mut sampler = Sampler::new(0.0, 1.0, 0);
        let mut logits = session.feed(&prompt[..length])?;
        for _ in 0..count {
            let id = sampler.next(&logits)?;
            greedy.push(id);
            logits = session.feed(&[id])?;
        }
        prompts.extend(prompt);
    }
    let cpu = &Device::Cpu;
    Ok(BTreeMap::from([
        ("logits".into(), view.logits(&ids, 2)?),
        ("ids".into(), Tensor::from_vec(ids, (2, tokens), cpu)?),
        ("prompt".into(), Tensor::from_vec(prompts, (3, most), cpu)?),
        ("lengths".into(), Tensor::new(&lengths.map(|n| n as u32), cpu)?),
        ("greedy".into(), Tensor::from_vec(greedy, (3, count), cpu)?),
    ]))
}

/// Mixers as flash-linear-attention's own layers have them: names, mixers, options.
const FLA: [(&str, &str, &str); 8] = [
    ("gla", "gla", r#"{ "output_gate": false }"#),
    ("gla-convolution", "gla", r#"{ "output_gate": false, "convolution": true }"#),
    ("deltanet", "deltanet", r#"{ "beta_bias": false }"#),
    ("gated-deltanet", "gated-deltanet", r#"{ "beta_bias": false, "output_gate": false }"#),
    ("negative", "gated-deltanet", r#"{ "beta_bias": false, "output_gate": false, "negative_eigenvalues": true }"#),
    ("delta-product", "delta-product", r#"{ "beta_bias": false, "output_gate": false, "micro_steps": 3 }"#),
    ("kda", "kda", r#"{ "beta_bias": false }"#),
    ("kda-safe", "kda", r#"{ "beta_bias": false, "safe_gate": true, "negative_eigenvalues": true }"#),
];

/// Every mixer alone and beside each kind of window that it takes, and every option at another value than its default.
fn mixers(to: &Path) -> Done<()> {
    let teacher = Teacher::open("builtin:stories260K", &Location::resolve("builtin:stories260K", None)?)?;
    let case =
        |mixer| Case { mixer, options: serde_json::json!({}), window: None, softmax_layers: vec![], adapted: false };
    for registration in MIXERS {
        let mixer = registration.name;
        case(mixer).write(&format!("mixer-{mixer}"), &teacher, to)?;
        for (i, &combine) in registration.combine.iter().enumerate() {
            // A layer keeps softmax attention beside the first kind, and sinks beside the second.
            let window = Some(Window { size: 16, sinks: if i == 1 { 3 } else { 0 }, combine });
            let softmax_layers = if i == 0 { vec![2] } else { vec![] };
            let case = Case { window, softmax_layers, ..case(mixer) };
            case.write(&format!("mixer-{mixer}-{}", combine.name()), &teacher, to)?;
        }
        let joint = Window { size: 16, sinks: 3, combine: Combine::Joint };
        if registration.combine.contains(&Combine::Joint) {
            Case { window: Some(joint), ..case(mixer) }.write(&format!("mixer-{mixer}-sinks"), &teacher, to)?;
        }
    }
    for (name, mixer, options) in FLA {
        let options = serde_json::from_str(options)?;
        Case { options, ..case(mixer) }.write(&format!("fla-{name}"), &teacher, to)?;
    }
    for (mixer, options) in OPTIONS {
        let options: serde_json::Value = serde_json::from_str(options)?;
        let name = format!("option-{mixer}-{}", options.as_object().and_then(|o| o.keys().next()).expect("an option"));
        let window = (*mixer == "nalaformer").then_some(Window { size: 16, sinks: 0, combine: Combine::Joint });
        Case { options, window, ..case(mixer) }.write(&name, &teacher, to)?;
    }
    Ok(())
}

const OPTIONS: &[(&str, &str)] = &[
    ("hedgehog", r#"{"feature_width": 5}"#),
    ("hedgehog-fla", r#"{"maps": "shared"}"#),
    ("t2r", r#"{"bias": true, "maps": "shared", "feature_width": 6}"#),
    ("elu-plus-one", r#"{"output_scale": false}"#),
    ("performer", r#"{"features": 11}"#),
    ("cosformer", r#"{"length": 200}"#),
    ("based", r#"{"feature_width": 5, "maps": "shared"}"#),
    ("rebased", r#"{"feature_width": 5}"#),
    ("mala", r#"{"rope": false}"#),
    ("inline", r#"{"rope": true}"#),
    ("nalaformer", r#"{"rope": false}"#),
    ("transnormer", r#"{"block": 24}"#),
    ("retention", r#"{"output_gate": false}"#),
    ("lightning", r#"{"slopes": "geometric", "activation": true}"#),
    ("lightning", r#"{"output_norm": false}"#),
    ("simple-gla", r#"{"convolution": false}"#),
    ("gla", r#"{"gate_rank": 3, "convolution": true, "output_gate": false}"#),
    ("hgrn2", r#"{"lower_bound": false}"#),
    ("gsa", r#"{"slots": 12}"#),
    ("mamba2", r#"{"convolution": false}"#),
    ("mlstm", r#"{"gates": "projections"}"#),
    ("rwkv6", r#"{"mix_rank": 3, "decay_rank": 5}"#),
    ("deltanet", r#"{"negative_eigenvalues": true, "output_gate": true}"#),
    ("gated-deltanet", r#"{"convolution": false}"#),
    ("kda", r#"{"safe_gate": true, "gate_rank": 4}"#),
    ("kda", r#"{"output_gate": false}"#),
    ("delta-product", r#"{"micro_steps": 3, "negative_eigenvalues": false}"#),
    ("titans", r#"{"mean_loss": true}"#),
    ("rwkv7", r#"{"token_shift": false, "gate_rank": 7}"#),
];

/// Every tiny teacher of tests/fixtures/families, its last layer with the teacher's own attention.
fn families(to: &Path) -> Done<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(fixtures)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    folders.sort();
    for (i, folder) in folders.iter().enumerate() {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let teacher = Teacher::open(&name, &Location::Path(folder.clone()))?;
        let (mixer, combine) = [("hedgehog", Some(Combine::Joint)), ("gated-deltanet", None)][i % 2];
        let window = combine.map(|combine| Window { size: 4, sinks: 0, combine });
        let softmax_layers = vec![teacher.model.spec.layers - 1];
        let case = Case { mixer, options: serde_json::json!({}), window, softmax_layers, adapted: false };
        case.write(&format!("family-{name}"), &teacher, to)?;
        // Projections with tensors of their own, and three ways to share one.
        if ["llama", "gpt2", "gpt_neox", "phi3"].contains(&name.as_str()) {
            Case { adapted: true, ..case }.write(&format!("adapter-{name}"), &teacher, to)?;
        }
    }
    Ok(())
}

fn main() -> Done<()> {
    let to = std::env::args_os().nth(1).ok_or("name the folder to write")?;
    let to = Path::new(&to);
    mixers(to)?;
    families(to)
}
