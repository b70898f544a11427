//! Every family against transformers: the tiny models of tests/python/family_fixtures.py.

#[path = "../common/mod.rs"]
mod common;
mod conversion;
mod forms;
mod hostile;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use common::largest;
use subquad::arch::Spec;
use subquad::checkpoint::{Checkpoint, Location, Writer, load_tensors};
use subquad::model::{Model, Sampler, Session, View};
use subquad::ops::Documents;
use tempfile::TempDir;

/// Largest difference of logits that counts as equal.
const TOLERANCE: f32 = 1e-4;

struct Case {
    name: String,
    folder: PathBuf,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn all() -> Vec<Case> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
        let mut folders: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        folders.sort();
        let case = |folder: PathBuf| Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            expected: load_tensors(&folder.join("expected.safetensors")).unwrap().0,
            folder,
        };
        let all: Vec<Case> = folders.into_iter().map(case).collect();
        assert!(all.len() >= 55, "{} models", all.len());
        all
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.expected[name].flatten_all().unwrap().to_vec1::<u32>().unwrap()
    }

    /// Logits of a text, and of a batch whose second row begins with padding.
    fn logits(&self, model: &Model) {
        let view = View::teacher(model);
        let logits = view.logits(&self.ids("ids"), 1).unwrap().squeeze(0).unwrap();
        let d = largest(&logits, &self.expected["logits"]);
        assert!(d < TOLERANCE, "{}: logits differ by {d}", self.name);

        let (padding, want) = (self.ids("padding"), &self.expected["padded_logits"]);
        let tokens = want.dim(1).unwrap();
        #[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
        let rows = padding.iter().map(|&n| vec![n as usize..tokens]).collect();
        let documents = Documents::new(tokens, rows).unwrap();
        let got = view.logits_in(&self.ids("padded_ids"), &documents).unwrap();
        for (row, &n) in padding.iter().enumerate() {
            let real = |x: &Tensor| x.get(row).unwrap().narrow(0, n as usize, tokens - n as usize).unwrap();
            let d = largest(&real(&got), &real(want));
            assert!(d < TOLERANCE, "{}: logits of row {row} beside padding differ by {d}", self.name);
        }
    }

    fn generation(&self, model: &Model) {
        let mut session = Session::new(View::teacher(model));
        let mut sampler = Sampler::new(0.0, 1.0, 0);
        let mut logits = session.feed(&self.ids("prompt")).unwrap();
        let want = self.ids("generated");
        let mut generated = vec![];
        while generated.len() < want.len() {
            generated.push(sampler.next(&logits).unwrap());
            logits = session.feed(&generated[generated.len() - 1..]).unwrap();
        }
        assert_eq!(generated, want, "{}", self.name);
    }
}

fn open(folder: &Path) -> (Checkpoint, Model) {
    let checkpoint = Checkpoint::open(&Location::Path(folder.into())).unwrap();
    let spec = Spec::of(&checkpoint).unwrap_or_else(|e| panic!("{}: {e}: {:?}", folder.display(), e.hint()));
    let model = Model::load(&checkpoint, &spec).unwrap();
    (checkpoint, model)
}

#[test]
fn logits_and_generation_are_those_of_transformers() {
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        case.logits(&model);
        case.generation(&model);
    }
}

/// The same model in f32, in shards: the same logits.
#[test]
fn shards_and_types_make_no_difference() {
    for case in Case::all() {
        let (checkpoint, model) = open(&case.folder);
        let dir = TempDir::new().unwrap();
        let declared = model.spec.tensors().into_iter().map(|(name, shape)| (name, DType::F32, shape)).collect();
        let mut writer = Writer::create(dir.path(), declared, 8192).unwrap();
        for (name, _) in model.spec.tensors() {
            writer.write(&name, &checkpoint.tensor(&name, DType::F32).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        fs::copy(case.folder.join("config.json"), dir.path().join("config.json")).unwrap();
        let (sharded, again) = open(dir.path());
        assert!(sharded.files().names().len() > 5, "{}", case.name);
        assert_eq!(again.spec, model.spec, "{}", case.name);
        case.logits(&again);
        // What tensors hold is cut and joined again without a change.
        for stored in model.spec.stored() {
            let read = checkpoint.tensor(&stored.name, DType::F32).unwrap();
            assert_eq!(largest(&model.stored(&stored).unwrap(), &read), 0.0, "{}: {}", case.name, stored.name);
        }
    }
}
