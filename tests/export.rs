//! Exported folders: what they hold, that they open again as the same model, and that nothing half done is left.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use common::{difference, largest, random};
use serde_json::{Map, Value, json};
use subquad::Error;
use subquad::arch::Spec;
use subquad::checkpoint::{Builtin, Checkpoint, Location, Writer, load_tensors};
use subquad::evaluate::report::{Control, Report, Score};
use subquad::export::{ExportOptions, Exported, TOKENIZER, compare, export};
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
        window: window.map(|size| Window { size, combine: Combine::Joint }),
        softmax_layers: softmax_layers.to_vec(),
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
        let options = ExportOptions { shard_bytes: form.shard_bytes, dtype: form.dtype };
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
        tokens: 1000,
        sequence: 128,
        model: score(5.5),
        teacher_perplexity: Some(5.0),
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

// ---- what a folder holds ----

#[test]
fn in_f32_nothing_changes() {
    let dir = TempDir::new().unwrap();
    let (case, to) = (case(), dir.path().join("deep/er/model"));
    let exported = case.plain(&to);
    assert_eq!(exported.largest_difference, 0.0);
    assert_eq!(exported.rounding, None);
    assert_eq!(exported.folder, fs::canonicalize(&to).unwrap());
    assert_eq!(entries(to.parent().unwrap()), ["model"]);
    let names: Vec<&str> = exported.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, entries(&to));
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "recipe.toml",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    for file in &exported.files {
        assert_eq!(fs::metadata(to.join(&file.name)).unwrap().len(), file.bytes, "{}", file.name);
    }
    assert_eq!(exported.bytes, exported.files.iter().map(|f| f.bytes).sum::<u64>());
    assert_eq!(exported.absent.len() + 2, TOKENIZER.len());
    assert!(exported.absent.contains(&"tokenizer.model"));

    let again = open(&to);
    assert_eq!(largest(&logits(&again), &logits(&case)), 0.0);
    assert_eq!(again.student.conversion, case.student.conversion);
    assert_eq!(again.model.spec, case.model.spec);
    assert_eq!(again.student.tensors.keys().collect::<Vec<_>>(), case.student.tensors.keys().collect::<Vec<_>>());
    // The teacher's own weights would not do: the adapter is in them.
    let unmerged = case_of(builtin(), Some(16), &[]).teacher.tensor("model.layers.0.mlp.up_proj.weight", DType::F32);
    let merged = again.teacher.tensor("model.layers.0.mlp.up_proj.weight", DType::F32).unwrap();
    assert!(largest(&merged, &unmerged.unwrap()) > 1e-3);
}

#[test]
fn files_are_copied_byte_for_byte() {
    let odd = b"{ \"added\" :\t[ ] }\r\n";
    let teacher = teacher_folder(&[
        ("added_tokens.json", Some(odd)),
        ("generation_config.json", Some(b"{\"eos_token_id\": [2, 7]  }\n\n")),
        ("LICENSE", Some(b"Do as you like.\n")),
        ("NOTICE.txt", Some(b"Made by someone.\n")),
        ("weights.py", Some(b"import os\n")),
    ]);
    let case = case_of(Location::Path(teacher.path().into()), Some(16), &[]);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    let exported = case.plain(&to);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "generation_config.json",
        "LICENSE",
        "NOTICE.txt",
    ] {
        assert_eq!(fs::read(to.join(name)).unwrap(), fs::read(teacher.path().join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_to_string(to.join("recipe.toml")).unwrap(), RECIPE);
    assert!(!exported.absent.contains(&"added_tokens.json"));
    assert!(!to.join("weights.py").exists());
    assert_eq!(open(&to).model.spec.eos, [2, 7]);
}

#[test]
fn config_describes_the_student() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    case_of(builtin(), Some(16), &[0, 4]).plain(&to);
    let config = json_of(&to.join("config.json"));
    let expected = json!({
        "architectures": ["SubquadForCausalLM"], "model_type": "subquad", "hidden_size": 64, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 172,
        "vocab_size": 512, "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "dtype": "float32", "torch_dtype": "float32",
        "use_cache": true, "hidden_act": "silu", "sliding_window": 16,
        "layer_types": ["full_attention", "hybrid_sliding", "hybrid_sliding", "hybrid_sliding", "full_attention"],
        "subquad": {
            "format": 1, "teacher_model_type": "llama", "teacher": NAME, "mixer": "hedgehog",
            "options": { "feature_width": null, "init": "identity" },
            "window": { "size": 16, "combine": "joint" }, "softmax_layers": [0, 4]
        }
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(config.get(key), Some(value), "{key}");
    }
    assert!(!config.contains_key("auto_map"));

    let bare = dir.path().join("bare");
    case_of(builtin(), None, &[]).plain(&bare);
    let config = json_of(&bare.join("config.json"));
    assert_eq!(config["layer_types"], json!(vec!["linear_attention"; 5]));
    assert!(!config.contains_key("sliding_window"));
}

/// What transformers 5 writes is turned into what all versions read; what made or served the teacher is dropped.
#[test]
fn newer_and_foreign_keys_of_the_teacher() {
    let mut config = builtin_config();
    config.remove("rope_theta");
    config.insert("rope_parameters".into(), json!({ "rope_type": "default", "rope_theta": 20000.0 }));
    config.insert("auto_map".into(), json!({ "AutoModel": "evil.Model" }));
    config.insert("transformers_version".into(), json!("5.23.0"));
    config.insert("eos_token_id".into(), json!([2, 5]));
    let text = serde_json::to_vec(&config).unwrap();
    let teacher = teacher_folder(&[("config.json", Some(&text)), ("generation_config.json", None)]);
    let case = case_of(Location::Path(teacher.path().into()), Some(16), &[]);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    case.plain(&to);
    let config = json_of(&to.join("config.json"));
    assert_eq!(config["rope_theta"], json!(20000.0));
    for key in ["rope_parameters", "auto_map", "transformers_version"] {
        assert!(!config.contains_key(key), "{key}");
    }
    let generation = json_of(&to.join("generation_config.json"));
    assert_eq!(Value::from(generation), json!({ "bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": null }));
    assert_eq!(open(&to).model.spec, case.model.spec);
}

#[test]
fn the_card_tells_what_it_is() {
    let teacher = teacher_folder(&[("README.md", Some(b"---\nlicense: mit\ntags: [x]\n---\n# A model\n"))]);
    let mut case = case_of(Location::Path(teacher.path().into()), Some(16), &[1]);
    case.student.conversion.teacher = "someone/a-model".into();
    let dir = TempDir::new().unwrap();
    let card = |case: &Case, name: &str| {
        case.plain(&dir.path().join(name));
        fs::read_to_string(dir.path().join(name).join("README.md")).unwrap()
    };
    let text = card(&case, "hub");
    let front = "---\nbase_model: someone/a-model\nlicense: mit\nlibrary_name: subquad\ntags:\n- linear-attention\n- hedgehog\n---\n";
    assert!(text.starts_with(front), "{text}");
    for part in [
        "4 of 5 layers",
        "the last 16 keys",
        "keep softmax attention: 1 ",
        "subquad generate DIR",
        "subquad evaluate DIR",
        "transformers cannot load this model yet",
        "| teacher | 5.000 | | |",
        "| **this model** | 5.500 | 0.1250 | 75.0% |",
        "| window only | 7.250 | 0.1250 | 75.0% |",
        "1.1000",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    // A path that looks like a Hub id, a builtin, and a name that would break the front matter.
    case.student.conversion.teacher = teacher.path().file_name().unwrap().to_str().unwrap().into();
    assert!(!card(&case, "path").contains("base_model"));
    let parent = teacher.path().parent().unwrap().file_name().unwrap().to_str().unwrap();
    case.student.conversion.teacher = format!("{parent}/{}", case.student.conversion.teacher);
    assert!(!card(&case, "relative").contains("base_model"));
    case.student.conversion.teacher = "/home/jo/.cache/models--some-one--Llama-1.2/snapshots/0123".into();
    assert!(card(&case, "cached").starts_with("---\nbase_model: some-one/Llama-1.2\n"));
    case.student.conversion.teacher = "/home/jo/my-model".into();
    let text = card(&case, "private");
    assert!(text.contains("# `my-model` with linear attention") && !text.contains("/home"), "{text}");
    case.student.conversion.teacher = "a/b\nlicense: none".into();
    let text = card(&case, "hostile");
    assert!(!text.contains("base_model") && !text.contains("\nlicense: none"), "{text}");
    let plain = card(&crate::case(), "builtin");
    assert!(plain.starts_with("---\nlibrary_name: subquad\n"), "{plain}");
}

// ---- round trips ----

#[test]
fn narrow_types_equal_the_rounded_model() {
    let case = case();
    for (dtype, word) in [(DType::BF16, "bfloat16"), (DType::F16, "float16")] {
        let dir = TempDir::new().unwrap();
        let to = dir.path().join("model");
        let exported = case.export(&to, Form { dtype: Some(dtype), ..PLAIN }, &mut Silent).unwrap();
        assert_eq!(exported.largest_difference, 0.0);
        let rounding = exported.rounding.unwrap();
        assert!(rounding > 1e-4 && rounding < 1.0, "{word}: {rounding}");
        let config = json_of(&to.join("config.json"));
        assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!(word), &json!(word)));
        let again = open(&to);
        for info in again.teacher.tensors() {
            let expected = if info.name.contains(".mixer.") { DType::F32 } else { dtype };
            assert_eq!(DType::try_from(info.dtype).unwrap(), expected, "{}", info.name);
        }
        let d = largest(&logits(&again), &logits(&case));
        assert!(d > 1e-4 && d < 1.0, "{word}: {d}");
    }
}

/// Without a type of its own an export stores every tensor as the teacher does.
#[test]
fn the_teachers_types_are_kept() {
    let source = Checkpoint::open(&builtin()).unwrap();
    let spec = Spec::of(&source).unwrap();
    let dtype = |name: &str| if name.contains("norm") { DType::F32 } else { DType::BF16 };
    let folder = teacher_folder(&[]);
    let declared = spec.tensors().into_iter().map(|(name, shape)| (name.clone(), dtype(&name), shape));
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut writer = Writer::create(folder.path(), declared.collect(), 1 << 30).unwrap();
    for (name, _) in spec.tensors() {
        writer.write(&name, &source.tensor(&name, DType::F32).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    let exported = case_of(Location::Path(folder.path().into()), Some(16), &[]).plain(&to);
    assert!(exported.rounding.is_some());
    let again = open(&to);
    for (name, _) in spec.tensors() {
        assert_eq!(DType::try_from(again.teacher.info(&name).unwrap().dtype).unwrap(), dtype(&name), "{name}");
    }
    assert_eq!(json_of(&to.join("config.json"))["dtype"], "bfloat16");
}

#[test]
fn shards_have_an_index_and_the_same_weights() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let to = dir.path().join("model");
    let exported = case.export(&to, Form { shard_bytes: 100_000, ..PLAIN }, &mut Silent).unwrap();
    assert_eq!(exported.largest_difference, 0.0);
    let shards: Vec<&str> =
        exported.files.iter().map(|f| f.name.as_str()).filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 5, "{shards:?}");
    let index = json_of(&to.join("model.safetensors.index.json"));
    let mut homes = BTreeMap::new();
    for shard in &shards {
        let (tensors, metadata) = load_tensors(&to.join(shard)).unwrap();
        assert_eq!(metadata["format"], "pt");
        for name in tensors.into_keys() {
            assert_eq!(homes.insert(name, json!(shard)), None);
        }
    }
    assert_eq!(index["weight_map"], json!(homes));
    assert_eq!(largest(&logits(&open(&to)), &logits(&case)), 0.0);
    // One file in their place: the shards are gone.
    case.plain(&to);
    assert_eq!(load_tensors(&to.join("model.safetensors")).unwrap().1["format"], "pt");
    assert!(!to.join("model.safetensors.index.json").exists() && !to.join(shards[0]).exists());
}

#[test]
fn tied_models_store_no_head_and_others_do() {
    let dir = TempDir::new().unwrap();
    let tied = dir.path().join("tied");
    case().plain(&tied);
    assert!(open(&tied).teacher.info("lm_head.weight").is_none());

    let source = Checkpoint::open(&builtin()).unwrap();
    let spec = Spec { tied: false, ..Spec::of(&source).unwrap() };
    let mut config = builtin_config();
    config.insert("tie_word_embeddings".into(), json!(false));
    let folder = teacher_folder(&[("config.json", Some(&serde_json::to_vec(&config).unwrap()))]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let declared = spec.tensors().into_iter().map(|(name, shape)| (name, DType::F32, shape)).collect();
    let mut writer = Writer::create(folder.path(), declared, 1 << 30).unwrap();
    for (name, shape) in spec.tensors() {
        let tensor = match name == "lm_head.weight" {
            true => random(5, &shape, 0.5),
            false => source.tensor(&name, DType::F32).unwrap(),
        };
        writer.write(&name, &tensor).unwrap();
    }
    writer.finish().unwrap();
    let case = case_of(Location::Path(folder.path().into()), Some(16), &[]);
    let untied = dir.path().join("untied");
    assert_eq!(case.plain(&untied).largest_difference, 0.0);
    let again = open(&untied);
    assert!(!again.model.spec.tied && again.teacher.info("lm_head.weight").is_some());
    assert_eq!(largest(&logits(&again), &logits(&case)), 0.0);
}

#[test]
fn kept_layers_and_no_window() {
    for (window, softmax) in [(None, vec![]), (None, vec![2]), (Some(70), vec![0, 4]), (Some(1), vec![0, 1, 2, 3, 4])] {
        let (case, dir) = (case_of(builtin(), window, &softmax), TempDir::new().unwrap());
        let to = dir.path().join("model");
        assert_eq!(case.plain(&to).largest_difference, 0.0);
        let again = open(&to);
        assert_eq!(largest(&logits(&again), &logits(&case)), 0.0, "{window:?} {softmax:?}");
        let mixed = |layer: usize| {
            again.teacher.tensors().iter().any(|t| t.name.contains(&format!(".{layer}.self_attn.mixer.")))
        };
        assert!((0..5).all(|layer| mixed(layer) != softmax.contains(&layer)));
    }
}

#[test]
fn the_reopened_model_generates_alike_in_chunks_and_in_steps() {
    for (window, softmax) in [(Some(16), vec![]), (None, vec![]), (Some(8), vec![1])] {
        let (case, dir) = (case_of(builtin(), window, &softmax), TempDir::new().unwrap());
        let to = dir.path().join("model");
        case.plain(&to);
        let again = open(&to);
        let prompt: Vec<u32> = [1].into_iter().chain((0..39).map(|i| (i * 53 + 7) % 512)).collect();
        let view = View::student(&again.model, &again.student);
        let (mut chunked, mut stepped) = (Session::new(view), Session::new(view));
        let mut at_once = chunked.feed(&prompt).unwrap();
        let mut one_by_one = prompt.iter().map(|id| stepped.feed(&[*id]).unwrap()).last().unwrap();
        let mut ids = prompt.clone();
        let mut sampler = Sampler::new(0.0, 1.0, 0);
        for _ in 0..30 {
            assert!(difference(&at_once, &one_by_one) < 1e-4, "{window:?} {softmax:?}, token {}", ids.len());
            let whole = view.logits(&ids, 1).unwrap().get(0).unwrap().get(ids.len() - 1).unwrap();
            assert!(difference(&whole, &one_by_one) < 1e-4, "{window:?} {softmax:?}, token {}", ids.len());
            let next = sampler.next(&at_once).unwrap();
            ids.push(next);
            at_once = chunked.feed(&[next]).unwrap();
            one_by_one = stepped.feed(&[next]).unwrap();
        }
        // The model in memory goes on with the same words.
        let mut memory = Session::new(View::student(&case.model, &case.student));
        let mut last = memory.feed(&prompt).unwrap();
        for id in &ids[prompt.len()..] {
            assert_eq!(sampler.next(&last).unwrap(), *id);
            last = memory.feed(&[*id]).unwrap();
        }
    }
}

// ---- the comparison ----

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

/// The place of a tensor's last byte in the only file of a folder.
fn last_byte(folder: &Path, name: &str) -> (PathBuf, usize) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = header[name]["data_offsets"][1].as_u64().unwrap() as usize;
    (path, 8 + length + end - 1)
}

#[test]
fn one_byte_of_any_weight_is_noticed() {
    for dtype in [DType::F32, DType::BF16] {
        let (case, dir) = (case(), TempDir::new().unwrap());
        let to = dir.path().join("model");
        case.export(&to, Form { dtype: Some(dtype), ..PLAIN }, &mut Silent).unwrap();
        assert_eq!(parity(&to, &case).unwrap(), 0.0);
        for name in [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.4.mlp.down_proj.weight",
            "model.layers.2.input_layernorm.weight",
            "model.layers.3.self_attn.mixer.k_map",
        ] {
            let (path, at) = last_byte(&to, name);
            let whole = fs::read(&path).unwrap();
            // The sign, the lowest bit of the last number, and an exponent that makes it infinite or no number.
            let width = if name.contains(".mixer.") { 4 } else { dtype.size_in_bytes() };
            for (place, flip) in [(at, 0x80), (at + 1 - width, 0x01), (at, !whole[at] & 0x7f)] {
                let mut bytes = whole.clone();
                bytes[place] ^= flip;
                fs::write(&path, bytes).unwrap();
                differs(parity(&to, &case), name);
            }
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(parity(&to, &case).unwrap(), 0.0);
    }
}

#[test]
fn another_description_is_noticed() {
    let (case, dir) = (case_of(builtin(), Some(16), &[1]), TempDir::new().unwrap());
    let to = dir.path().join("model");
    case.plain(&to);
    let whole = json_of(&to.join("config.json"));
    let with = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut config = whole.clone();
        change(&mut config);
        fs::write(to.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        parity(&to, &case)
    };
    differs(with(&|c| c["subquad"]["window"]["size"] = json!(17)), "logits");
    differs(with(&|c| c["subquad"]["softmax_layers"] = json!([1, 2])), "logits");
    differs(with(&|c| c["rope_theta"] = json!(10001.0)), "architecture");
    differs(with(&|c| c["eos_token_id"] = json!(3)), "architecture");
    differs(with(&|c| c["subquad"]["softmax_layers"] = json!([])), "cannot be opened again");
    differs(with(&|c| c["hidden_size"] = json!(65)), "cannot be opened again");
    differs(with(&|c| c["model_type"] = json!("llama")), "cannot be opened again");
    differs(with(&|c| drop(c.remove("subquad"))), "cannot be opened again");
    assert_eq!(with(&|_| ()).unwrap(), 0.0);
    fs::remove_file(to.join("model.safetensors")).unwrap();
    differs(parity(&to, &case), "cannot be opened again");
}

#[test]
fn numbers_that_are_none_or_do_not_fit_are_refused() {
    let (mut case, dir) = (case(), TempDir::new().unwrap());
    let to = dir.path().join("model");
    let weight = case.model.layers[0].weight(Target::V).clone();
    let with = |value: f64| (&weight * value).unwrap();
    case.model.set_weight(0, Target::V, with(1e7));
    differs(case.export(&to, Form { dtype: Some(DType::F16), ..PLAIN }, &mut Silent), "does not fit float16");
    case.model.set_weight(0, Target::V, with(f64::NAN));
    differs(case.export(&to, PLAIN, &mut Silent), "not finite numbers");
    assert!(entries(dir.path()).is_empty());
}

// ---- where it goes ----

#[test]
fn only_an_earlier_export_is_replaced() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    let refused = |name: &str, what: &str| {
        let before = entries(dir.path());
        says(case.export(&at(name), PLAIN, &mut Silent), what);
        assert_eq!(entries(dir.path()), before);
    };
    fs::write(at("file"), "mine").unwrap();
    refused("file", "this is a file");
    refused("file/model", "no folder can be made in it");
    fs::create_dir(at("notes")).unwrap();
    fs::write(at("notes/thesis.tex"), "mine").unwrap();
    refused("notes", "`thesis.tex` is in this folder");
    fs::create_dir(at("teacher")).unwrap();
    for (name, bytes) in Builtin::find("stories260K").unwrap().files {
        fs::write(at("teacher").join(name), bytes).unwrap();
    }
    refused("teacher", "a model that subquad did not write");
    says(case.export(Path::new("/"), PLAIN, &mut Silent), "not the name of a folder");

    // An empty folder, then its own export, unless someone has put something there.
    fs::create_dir(at("model")).unwrap();
    case.plain(&at("model"));
    case.export(&at("model"), Form { dtype: Some(DType::BF16), ..PLAIN }, &mut Silent).unwrap();
    assert_eq!(json_of(&at("model/config.json"))["dtype"], "bfloat16");
    fs::create_dir(at("model/.git")).unwrap();
    refused("model", "`.git` is in this folder");
    assert_eq!(entries(dir.path()), ["file", "model", "notes", "teacher"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    case.plain(&dir.path().join("link"));
    assert!(dir.path().join("link").is_symlink() && dir.path().join("real/config.json").is_file());
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("broken")).unwrap();
    says(case.export(&dir.path().join("broken"), PLAIN, &mut Silent), "a link to a folder that is not there");
    assert_eq!(entries(dir.path()), ["broken", "link", "real"]);
}

#[test]
fn what_killed_exports_left_is_cleared_away() {
    let (mut case, dir) = (case(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    case.plain(&at("model"));
    // Killed while it wrote.
    fs::create_dir(at(".model.subquad-partial")).unwrap();
    fs::write(at(".model.subquad-partial/.model.safetensors.partial"), "half").unwrap();
    case.plain(&at("model"));
    assert_eq!(entries(dir.path()), ["model"]);
    // Killed between its two renames: the earlier export comes back, also when the next one fails.
    fs::rename(at("model"), at(".model.subquad-previous")).unwrap();
    let weight = case.model.layers[0].weight(Target::V).clone();
    case.model.set_weight(0, Target::V, (&weight * f64::NAN).unwrap());
    differs(case.export(&at("model"), PLAIN, &mut Silent), "not finite numbers");
    assert_eq!(entries(dir.path()), ["model"]);
    case.model.set_weight(0, Target::V, weight);
    assert_eq!(parity(&at("model"), &case).unwrap(), 0.0);
    // Killed before it had removed the earlier one.
    fs::create_dir(at(".model.subquad-previous")).unwrap();
    fs::write(at(".model.subquad-previous/config.json"), "{}").unwrap();
    case.plain(&at("model"));
    assert_eq!(entries(dir.path()), ["model"]);
}

/// A listener that does something at its call number `at`.
struct At<F: FnMut()> {
    calls: usize,
    at: usize,
    act: F,
}

impl<F: FnMut()> At<F> {
    fn count(&mut self) {
        self.calls += 1;
        if self.calls == self.at {
            (self.act)();
        }
    }
}

impl<F: FnMut()> Progress for At<F> {
    fn begin(&mut self, _: &str, _: u64, _: u64, _: Unit) {
        self.count();
    }
    fn advance(&mut self, _: u64, _: &str) {
        self.count();
    }
    fn end(&mut self, _: &str) {
        self.count();
    }
    fn say(&mut self, _: &str) {
        self.count();
    }
}

/// Wherever an export is broken off, new folders are gone and an earlier export is as it was.
#[test]
fn nothing_is_left_of_a_broken_export() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let mut count = At { calls: 0, at: 0, act: || () };
    case.export(&dir.path().join("old"), PLAIN, &mut count).unwrap();
    assert!(count.calls > 40);
    let config = fs::read(dir.path().join("old/config.json")).unwrap();
    for at in [1, 2, 30, count.calls - 4, count.calls] {
        for to in ["new", "a/b/new", "old"] {
            let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut listener = At { calls: 0, at, act: || std::panic::resume_unwind(Box::new("broken off")) };
                let form = Form { dtype: Some(DType::BF16), ..PLAIN };
                case.export(&dir.path().join(to), form, &mut listener)
            }));
            assert!(broken.is_err());
            assert_eq!(entries(dir.path()), ["old"], "call {at}");
            assert_eq!(fs::read(dir.path().join("old/config.json")).unwrap(), config);
        }
    }
    assert_eq!(parity(&dir.path().join("old"), &case).unwrap(), 0.0);
}

/// Ctrl-C stops a whole process, so this test runs itself as another one.
#[test]
fn ctrl_c_leaves_nothing() {
    const PLACE: &str = "SUBQUAD_TEST_INTERRUPTED_EXPORT";
    if let Ok(place) = std::env::var(PLACE) {
        let mut listener = At { calls: 0, at: 20, act: interrupt };
        let result = case().export(Path::new(&place), PLAIN, &mut listener);
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!(listener.calls, 20, "it stops at once");
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "ctrl_c_leaves_nothing"]).env(PLACE, dir.path().join("some/model"));
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert!(entries(dir.path()).is_empty());
}
