//! Exported folders: what they hold, that they open again as the same model, and that nothing half done is left.

mod adapters;
#[path = "../common/mod.rs"]
mod common;
mod comparison;
mod contents;
#[cfg(unix)]
mod links;
mod place;
mod round_trips;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{difference, largest, random};
use serde_json::{Map, Value, json};
use subquad::Error;
use subquad::arch::Spec;
use subquad::checkpoint::{Builtin, Checkpoint, Location, Writer, load_tensors};
use subquad::evaluate::Part;
use subquad::evaluate::report::{Control, Report, Score};
use subquad::export::{
    ExportOptions, Exported, TOKENIZER, check_companions, compare, copy, export, read_adapter, require_range,
};
use subquad::mixer::{Combine, Window};
use subquad::model::{Adapter, Conversion, Model, Sampler, Session, Student, Target, View};
use subquad::progress::{Progress, Silent, Unit, interrupt};
use tempfile::TempDir;

const RECIPE: &str = "# a comment stays\n[teacher]\nmodel = \"builtin:stories260K\"\n";
const NAME: &str = "builtin:stories260K";

/// A teacher, and a student whose merged weights and mixers are not at their initial values.
struct Case {
    teacher: Checkpoint,
    model: Model,
    student: Student,
}

/// How a case is exported.
struct Form {
    shard_bytes: u64,
    dtype: Option<DType>,
}

const PLAIN: Form = Form { shard_bytes: 1 << 30, dtype: None };

fn builtin() -> Location {
    Location::resolve(NAME, None).unwrap()
}

fn case_of(location: Location, window: Option<usize>, softmax_layers: &[usize]) -> Case {
    let teacher = Checkpoint::open(&location).unwrap();
    let spec = Spec::of(&teacher).unwrap();
    let mut model = Model::load(&teacher, &spec).unwrap();
    let conversion = Conversion {
        format: 1,
        teacher_model_type: "llama".into(),
        teacher: NAME.into(),
        mixer: "hedgehog".into(),
        options: Map::new(),
        window: window.map(|size| Window { size, sinks: 0, combine: Combine::Joint }),
        softmax_layers: softmax_layers.to_vec(),
        trained_sequence: None,
    };
    let mut student = Student::new(conversion, &spec, 0).unwrap();
    for (seed, tensor) in student.tensors.values_mut().enumerate() {
        *tensor = (&*tensor + random(seed as u64, tensor.dims(), 0.3)).unwrap();
    }
    let adapter = Adapter { rank: 4, alpha: 8.0, targets: vec![Target::Q, Target::O, Target::Up] };
    student.adapt(adapter, &spec, 1).unwrap();
    for (name, tensor) in student.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
        *tensor = random(name.len() as u64, tensor.dims(), 0.02);
    }
    student.merge(&mut model).unwrap();
    Case { teacher, model, student }
}

fn case() -> Case {
    case_of(builtin(), Some(16), &[])
}

impl Case {
    fn export(&self, to: &Path, form: Form, progress: &mut dyn Progress) -> subquad::Result<Exported> {
        let options = ExportOptions { shard_bytes: form.shard_bytes, dtype: form.dtype, base: None };
        export(&self.model, &self.student, &self.teacher, RECIPE, &options, &[report()], to, progress)
    }

    fn plain(&self, to: &Path) -> Exported {
        self.export(to, PLAIN, &mut Silent).unwrap()
    }
}

fn report() -> Report {
    let score = |perplexity| Score { perplexity, kl: Some(0.125), top1: Some(0.75) };
    Report {
        text: "builtin:tinystories-valid".into(),
        location: "builtin:tinystories-valid".into(),
        tokens: 1016,
        sequence: 128,
        windows: 8,
        part: Part::Start,
        model: score(5.5),
        teacher_perplexity: Some(5.0),
        layer_errors: vec![],
        controls: vec![Control { name: "window only".into(), score: score(7.25) }],
    }
}

/// A written folder, opened again.
fn open(folder: &Path) -> Case {
    let teacher = Checkpoint::open(&Location::Path(folder.into())).unwrap();
    let spec = Spec::of(&teacher).unwrap();
    let model = Model::load(&teacher, &spec).unwrap();
    let student = Student::load(&teacher, &spec).unwrap().unwrap();
    Case { teacher, model, student }
}

fn logits(case: &Case) -> Tensor {
    let ids: Vec<u32> = (0..100).map(|i| (i * 37 + 11) % 512).collect();
    View::student(&case.model, &case.student).logits(&ids, 2).unwrap()
}

fn json_of(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn builtin_config() -> Map<String, Value> {
    serde_json::from_slice(Builtin::find("stories260K").unwrap().file("config.json").unwrap()).unwrap()
}

/// Names of all entries of a folder, hidden ones too.
fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A copy of the teacher in a folder, with other contents of some files.
fn teacher_folder(changes: &[(&str, Option<&[u8]>)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in Builtin::find("stories260K").unwrap().files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    for (name, bytes) in changes {
        match bytes {
            Some(bytes) => fs::write(dir.path().join(name), bytes).unwrap(),
            None => fs::remove_file(dir.path().join(name)).unwrap(),
        }
    }
    dir
}

#[track_caller]
fn says<T>(result: subquad::Result<T>, what: &str) {
    let error = result.err().expect("an error");
    let message = error.to_string();
    assert!(message.contains(what), "`{message}` does not say `{what}`");
    assert!(error.hint().is_some() && !message.contains('\n'), "{message}");
}

fn parity(folder: &Path, case: &Case) -> subquad::Result<f32> {
    compare(folder, &case.model, &case.student, &mut Silent).map(|p| p.largest_difference)
}

#[track_caller]
fn differs<T>(result: subquad::Result<T>, what: &str) {
    let error = result.err().expect("an error");
    assert!(matches!(error, Error::Parity { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 2);
    says::<T>(Err(error), what);
}
