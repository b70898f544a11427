//! Opening, reading and writing of checkpoints; every kind of bad file gives one message and one hint.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use subquad::Error;
use subquad::checkpoint::{
    BUILTINS, Checkpoint, Files, Head, Location, Writer, load_tensors, save_tensors, write_atomically,
};
use subquad::progress::Silent;
use tempfile::TempDir;

/// A safetensors file from a header's text and a number of data bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// A folder with an empty config and `files`.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(dir: impl AsRef<Path>) -> Result<Checkpoint, Error> {
    Checkpoint::open(&Location::Path(dir.as_ref().into()))
}

/// Holds an error to what it must say, and to being the user's to mend.
#[track_caller]
fn says<T>(result: Result<T, Error>, what: &str, hint: &str) {
    let error = result.err().expect("an error");
    let (message, advice) = (error.to_string(), error.hint().expect("a hint"));
    assert!(message.contains(what), "`{message}` does not say `{what}`");
    assert!(advice.contains(hint), "the hint `{advice}` does not say `{hint}`");
    assert_eq!(error.exit_code(), 1);
    assert!(!message.contains('\n'), "{message}");
}

/// What opening says of a single file of weights.
#[track_caller]
fn single_says(bytes: &[u8], what: &str, hint: &str) {
    says(open(folder(&[("model.safetensors", bytes)])), what, hint);
}

fn ramp(count: usize, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..count).map(|i| i as f32 / 8.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// ---- opening ----

#[test]
fn builtin_teachers_open() {
    for (name, tensors, dtype) in [("stories260K", 47, "F32"), ("books-llama-7m", 56, "BF16")] {
        let location = Location::resolve(&format!("builtin:{name}"), None).unwrap();
        let checkpoint = Checkpoint::open(&location).unwrap();
        assert_eq!(checkpoint.tensors().len(), tensors);
        assert!(checkpoint.tensors().iter().all(|t| format!("{:?}", t.dtype) == dtype));
        assert!(checkpoint.tensors().is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(checkpoint.path(), Path::new(&format!("builtin:{name}")));
        assert_eq!(checkpoint.total_bytes(), checkpoint.tensors().iter().map(|t| t.bytes as u64).sum::<u64>());
        let norm = checkpoint.tensor("model.norm.weight", DType::F32).unwrap();
        assert!(values(&norm).iter().all(|x| x.is_finite() && *x != 0.0));
        assert!(checkpoint.files().names().contains(&"tokenizer.json".to_string()));
        assert!(checkpoint.files().read("tokenizer.json").unwrap().is_some());
    }
}

#[test]
fn builtins_are_models_or_one_text() {
    for builtin in BUILTINS {
        assert!(builtin.is_model() || builtin.files.len() == 1, "{builtin:?}");
        assert!(builtin.files.is_sorted_by(|a, b| a.0 < b.0), "{builtin:?}");
    }
}

#[test]
fn tensors_are_read_in_any_of_three_types() {
    let dir = TempDir::new().unwrap();
    let source = ramp(6, &[2, 3]);
    let declared = [("a", DType::F32), ("b", DType::F16), ("c", DType::BF16)]
        .map(|(name, dtype)| (name.to_string(), dtype, vec![2, 3]));
    let mut writer = Writer::create(dir.path(), declared.to_vec(), 1 << 20).unwrap();
    for name in ["a", "b", "c"] {
        writer.write(name, &source).unwrap();
    }
    writer.finish().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let checkpoint = open(&dir).unwrap();
    for name in ["a", "b", "c"] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = checkpoint.tensor_of(name, &[2, 3], dtype).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(values(&tensor), values(&source), "exact in every type");
        }
    }
    says(checkpoint.tensor_of("a", &[3, 2], DType::F32), "`a` has the shape [2, 3]", "of different models");
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let checkpoint = Checkpoint::open(&Location::resolve("builtin:stories260K", None).unwrap()).unwrap();
    let name = "model.layers.0.self_attn.qproj.weight";
    says(checkpoint.tensor(name, DType::F32), name, "`model.layers.0.self_attn.q_proj.weight`");
    says(checkpoint.tensor("\u{1b}[2J", DType::F32), "\\u{1b}[2J", "download");
}

#[test]
fn types_that_are_not_read_are_listed_and_refused() {
    let bytes = file(r#"{"x":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#, 4);
    let checkpoint = open(folder(&[("model.safetensors", &bytes)])).unwrap();
    assert_eq!(checkpoint.info("x").unwrap().bytes, 4);
    says(checkpoint.tensor("x", DType::F32), "stored as I8", "unquantised");
}

// ---- the folder and config.json ----

#[test]
fn missing_files() {
    let dir = TempDir::new().unwrap();
    says(open(dir.path().join("absent")), "there is no such folder", "config.json");
    says(open(&dir), "config.json: there is no such file", "Hugging Face layout");
    fs::create_dir(dir.path().join("snapshots")).unwrap();
    says(open(&dir), "config.json", "snapshots");
    says(open(folder(&[])), "neither `model.safetensors` nor", "download the model again");
    says(open(folder(&[("model-00001-of-00002.safetensors", b"")])), "neither", "add the index");
    says(open(folder(&[("pytorch_model.bin", b"")])), "neither", "convert it first");
    let weights = folder(&[("model.safetensors", b"")]);
    says(open(weights.path().join("model.safetensors")), "this is a file", "give the folder");
}

#[test]
fn bad_configs() {
    for (text, what) in [("", "this is not JSON"), ("{\"a\":", "this is not JSON"), ("[1]", "not a JSON object")] {
        let dir = folder(&[]);
        fs::write(dir.path().join("config.json"), text).unwrap();
        says(open(&dir), what, "copy the file again");
    }
    let dir = folder(&[]);
    fs::write(dir.path().join("config.json"), "[".repeat(100_000)).unwrap();
    says(open(&dir), "recursion limit", "again");
    fs::write(dir.path().join("config.json"), " ".repeat((1 << 20) + 1)).unwrap();
    says(open(&dir), "at most 1048576 are read", "not the file that its name says");
    fs::remove_file(dir.path().join("config.json")).unwrap();
    fs::create_dir(dir.path().join("config.json")).unwrap();
    says(open(&dir), "not a regular file", "another folder");
}

#[test]
fn files_are_read_by_plain_name_only() {
    let dir = folder(&[("model.safetensors", b"")]);
    let files = Files::open(&Location::Path(dir.path().into())).unwrap();
    assert_eq!(files.names(), ["config.json", "model.safetensors"]);
    assert_eq!(files.read("config.json").unwrap().unwrap().as_ref(), b"{}");
    assert!(files.read("absent.json").unwrap().is_none());
    for name in ["../config.json", "/etc/hostname", "a/b", "a\\b", "..", ".", "", "c:config.json"] {
        says(files.read(name), "not the plain name of a file", "own folder");
    }
}

// ---- headers ----

#[test]
fn truncated_weights() {
    let whole = file(r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 16);
    assert!(open(folder(&[("model.safetensors", &whole)])).is_ok());
    single_says(&[], "0 bytes are too few", "incomplete");
    single_says(&whole[..5], "5 bytes are too few", "incomplete");
    single_says(&whole[..20], "truncated: the header has", "incomplete");
    single_says(&whole[..whole.len() - 1], "ends at byte 16 of the data, of which the file has 15", "incomplete");
}

/// No prefix of a good file opens, and none panics.
#[test]
fn every_truncation_is_refused() {
    let whole = file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    for length in 0..whole.len() {
        assert!(open(folder(&[("model.safetensors", &whole[..length])])).is_err(), "{length}");
    }
}

/// Every byte of a good file changed in several ways: it opens or it is refused, and never panics.
#[test]
fn damage_anywhere_is_no_panic() {
    let whole = file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    let dir = folder(&[]);
    for place in 0..whole.len() {
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut damaged = whole.clone();
            damaged[place] ^= change;
            write_atomically(&dir.path().join("model.safetensors"), &damaged).unwrap();
            if let Ok(checkpoint) = open(&dir) {
                for info in checkpoint.tensors() {
                    let _ = checkpoint.tensor(&info.name, DType::F32);
                }
            }
        }
    }
}

#[test]
fn files_that_are_something_else() {
    single_says(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer", "git lfs pull");
    single_says(b"<!DOCTYPE html><html>404</html>", "this is no safetensors file", "only safetensors");
    single_says(&u64::MAX.to_le_bytes(), "this is no safetensors file", "only safetensors");
    single_says(&30_000_000u64.to_le_bytes(), "at most 25000000 are read", "only safetensors");
    single_says(&1000u64.to_le_bytes(), "truncated", "incomplete");
}

#[test]
fn headers_that_lie() {
    let wrong = "wrote a wrong header";
    let one = |entry: &str, data: usize| file(&format!("{{\"x\":{entry}}}"), data);
    let two = |x: (usize, usize), y: (usize, usize), data: usize| {
        let entry =
            |(start, end): (usize, usize)| json!({"dtype":"U8","shape":[end - start],"data_offsets":[start,end]});
        file(&json!({"x": entry(x), "y": entry(y)}).to_string(), data)
    };
    single_says(&file("not json", 0), "the header cannot be read", wrong);
    single_says(&file("[]", 0), "the header cannot be read", wrong);
    single_says(&file("{\"x\":{}}", 0), "missing field", wrong);
    single_says(&one(r#"{"dtype":"F99","shape":[1],"data_offsets":[0,4]}"#, 4), "unknown variant `F99`", wrong);
    single_says(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), "the header cannot be read", wrong);
    single_says(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4), "needs 8 bytes", wrong);
    single_says(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4), "gives it bytes 4 to 0", wrong);
    single_says(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 8), "4 bytes after the last", wrong);
    single_says(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8), "leaves a gap", wrong);
    single_says(&two((0, 4), (2, 6), 6), "overlaps the tensor before it", wrong);
    single_says(&two((0, 4), (6, 8), 8), "tensor `y` starts at byte 6 of the data and leaves a gap", wrong);
    single_says(&two((0, 9), (2, 3), 4), "overlaps the tensor before it", wrong);
}

#[test]
fn absurd_shapes_overflow_nothing() {
    let huge = usize::MAX / 2;
    let shapes = [vec![huge, huge], vec![0, huge, huge], vec![huge], vec![1; 100_000]];
    for shape in shapes {
        let header = json!({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).to_string();
        single_says(&file(&header, 4), "tensor `x` has an impossible shape", "wrong header");
    }
    // Offsets whose sum wraps round to the true length of the file.
    let size = usize::MAX / 8;
    let entries: serde_json::Map<String, Value> = (0..9)
        .map(|i| {
            let (start, end) = (size.wrapping_mul(i), size.wrapping_mul(i + 1));
            (format!("x{i}"), json!({"dtype": "U8", "shape": [size], "data_offsets": [start, end]}))
        })
        .collect();
    assert!(open(folder(&[("model.safetensors", &file(&Value::Object(entries).to_string(), 4))])).is_err());
    let header = json!({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).to_string();
    single_says(&file(&header, 4), "truncated", "incomplete");
}

#[test]
fn empty_tensors_are_no_lie() {
    let bytes = file(r#"{"x":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}"#, 0);
    let checkpoint = open(folder(&[("model.safetensors", &bytes)])).unwrap();
    assert_eq!(checkpoint.tensor("x", DType::F32).unwrap().dims(), [0, 3]);
}

// ---- index and shards ----

fn byte(name: &str) -> Vec<u8> {
    file(&json!({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).to_string(), 1)
}

fn sharded(map: Value, files: &[(&str, &[u8])]) -> TempDir {
    let dir = folder(files);
    let index = json!({"metadata": {"total_size": 2}, "weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn index_and_shards_agree() {
    let (x, y) = (byte("x"), byte("y"));
    let good =
        sharded(json!({"x": "a.safetensors", "y": "b.safetensors"}), &[("a.safetensors", &x), ("b.safetensors", &y)]);
    let checkpoint = open(&good).unwrap();
    assert_eq!(checkpoint.info("y").unwrap().file, "b.safetensors");

    let missing = sharded(json!({"x": "a.safetensors", "y": "b.safetensors"}), &[("a.safetensors", &x)]);
    says(open(&missing), "the shard `b.safetensors` is not there (1 of 2 are missing)", "incomplete");
    let lacking = sharded(json!({"x": "a.safetensors", "z": "a.safetensors"}), &[("a.safetensors", &x)]);
    says(open(&lacking), "`z` in `a.safetensors`, which does not have it", "different models");
    let map = json!({"x": "b.safetensors", "y": "a.safetensors"});
    let swapped = sharded(map, &[("a.safetensors", &x), ("b.safetensors", &y)]);
    says(open(&swapped), "places tensor `x` in `b.safetensors`, and it is in `a.safetensors`", "different models");
    let map = json!({"x": "a.safetensors", "y": "b.safetensors"});
    let both = file(
        r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
    );
    let twice = sharded(map, &[("a.safetensors", &x), ("b.safetensors", &both)]);
    says(open(&twice), "tensor `x` is in two shards", "different models");
    let map = json!({"x": "a.safetensors"});
    says(open(sharded(map, &[("a.safetensors", &x[..9])])), "a.safetensors: truncated", "incomplete");
}

#[test]
fn an_index_stays_in_its_folder() {
    let outer = folder(&[("x.safetensors", &byte("x"))]);
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("config.json"), "{}").unwrap();
    let absolute = outer.path().join("x.safetensors").display().to_string();
    for name in ["../x.safetensors", absolute.as_str(), "a/../../x.safetensors", "..\\x.safetensors", ".."] {
        let index = json!({"weight_map": {"x": name}}).to_string();
        fs::write(inner.join("model.safetensors.index.json"), index).unwrap();
        says(open(&inner), "is not in this folder", "reaches out of its folder");
    }
}

#[test]
fn bad_indices() {
    for (text, what) in [
        ("no", "the index cannot be read"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":{"x":1}}"#, "the index cannot be read"),
        (r#"{"weight_map":{}}"#, "`weight_map` is empty"),
    ] {
        let dir = folder(&[("model.safetensors.index.json", text.as_bytes())]);
        says(open(&dir), what, "copy");
    }
}

/// The Hub's shared cache has links to blobs; a link to nothing is an unfinished download.
#[cfg(unix)]
#[test]
fn links_to_whole_files_are_followed() {
    let cache = TempDir::new().unwrap();
    fs::write(cache.path().join("blob"), byte("x")).unwrap();
    let dir = folder(&[]);
    std::os::unix::fs::symlink(cache.path().join("blob"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(open(&dir).unwrap().tensors().len(), 1);
    fs::remove_file(cache.path().join("blob")).unwrap();
    says(open(&dir), "a link to a file that is not there", "incomplete");
}

/// What is copied elsewhere comes from the folder itself, whatever name leads to it.
#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    let outer = TempDir::new().unwrap();
    fs::write(outer.path().join("secret"), "{}").unwrap();
    let dir = folder(&[("model.safetensors", &byte("x"))]);
    let files = Files::open(&Location::Path(dir.path().into())).unwrap();
    let link = |name: &str, target: &Path| std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
    link("within.json", Path::new("config.json"));
    assert_eq!(files.read("within.json").unwrap().unwrap().as_ref(), b"{}");
    link("out.json", &outer.path().join("secret"));
    link("twice.json", Path::new("out.json"));
    link("up.json", Path::new("../../../../../../../../etc/hostname"));
    for name in ["out.json", "twice.json", "up.json"] {
        says(files.read(name), "a link out of the model's folder", "replace the link by a copy");
    }
    link("loop.json", Path::new("loop.json"));
    assert!(files.read("loop.json").is_err());
    // A shard by another name than that of weights is no exception.
    let index = json!({"weight_map": {"x": "weights"}}).to_string();
    fs::write(outer.path().join("shard"), byte("x")).unwrap();
    fs::rename(dir.path().join("model.safetensors"), outer.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    link("weights", &outer.path().join("shard"));
    says(open(&dir), "a link out of the model's folder", "replace the link by a copy");
    // The folder may be a link itself.
    let name = outer.path().join("model");
    std::os::unix::fs::symlink(dir.path(), &name).unwrap();
    assert!(Files::open(&Location::Path(name)).unwrap().read("config.json").unwrap().is_some());
}

// ---- numbers ----

/// In every type, at every end of what one thread looks at: the first is named, with its file.
#[test]
fn numbers_that_are_not_finite_are_refused() {
    let (rows, columns) = (3, 1 << 16);
    let last = rows * columns - 1;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (at, value) in [(0, f32::NAN), (columns - 1, f32::INFINITY), (columns, f32::NEG_INFINITY), (last, f32::NAN)]
        {
            let dir = folder(&[]);
            let mut values = vec![0.5f32; rows * columns];
            values[at] = value;
            values[last] = f32::NAN;
            let mut writer =
                Writer::create(dir.path(), vec![("x".into(), dtype, vec![rows, columns])], 1 << 30).unwrap();
            writer.write("x", &Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap();
            writer.finish().unwrap();
            let checkpoint = open(&dir).unwrap();
            let what = format!("model.safetensors: tensor `x` holds {value} at [{}, {}]", at / columns, at % columns);
            says(checkpoint.tensor("x", DType::F32), &what, "give an earlier checkpoint");
        }
    }
    // The largest and the smallest numbers that there are.
    let dir = folder(&[]);
    let bytes: Vec<u8> =
        [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1e-45].iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut whole = file(r#"{"x":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}}"#, 0);
    whole.extend(bytes);
    fs::write(dir.path().join("model.safetensors"), whole).unwrap();
    assert_eq!(values(&open(&dir).unwrap().tensor("x", DType::F32).unwrap())[..2], [f32::MAX, f32::MIN]);
}

// ---- heads ----

#[test]
fn a_model_opens_by_the_beginnings_of_its_files() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let whole = file(header, 8);
    let dir = folder(&[("config.json", b"{}")]);
    let opened = |bytes: &[u8], length: usize| {
        let head = Head { bytes: bytes.to_vec(), length: length as u64 };
        let files = Files::open(&Location::Path(dir.path().into()))?;
        Checkpoint::of(files.with_heads(BTreeMap::from([("model.safetensors".to_string(), head)])))
    };
    let checkpoint = opened(&whole[..whole.len() - 8], whole.len()).unwrap();
    assert_eq!((checkpoint.tensors().len(), checkpoint.total_bytes()), (1, 8));
    assert!(checkpoint.files().names().contains(&"model.safetensors".to_string()));
    says(checkpoint.tensor("a", DType::F32), "only the headers", "hub::model");
    // As much is checked as of a whole file.
    says(opened(&whole[..whole.len() - 8], whole.len() - 1), "truncated", "incomplete");
    says(opened(&whole[..whole.len() - 8], whole.len() + 1), "belong to none", "damaged");
    for length in 0..whole.len() - 8 {
        assert!(opened(&whole[..length], whole.len()).is_err(), "{length} bytes");
    }
}

// ---- locations ----

#[test]
fn locations() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("teacher")).unwrap();
    let base = Some(dir.path());
    assert!(
        matches!(Location::resolve("teacher", base).unwrap(), Location::Path(p) if p == dir.path().join("teacher"))
    );
    assert!(matches!(Location::resolve("builtin:books-valid", base).unwrap(), Location::Builtin(_)));
    assert_eq!(Location::resolve("builtin:stories260K", None).unwrap().to_string(), "builtin:stories260K");

    says(Location::resolve("teecher", base), "no such file or folder, and it is not a Hub id", "`teacher`");
    let hub = |text: &str| match Location::resolve(text, base) {
        Ok(Location::Hub(id)) => (id.to_string(), id.path),
        other => panic!("{text}: {other:?}"),
    };
    for text in ["meta-llama/Llama-3.2-1B", "a/b@v1", "a/b/c.txt"] {
        assert_eq!(hub(text), (text.into(), dir.path().join(text)));
    }
    fs::create_dir_all(dir.path().join("a/b@v1")).unwrap();
    assert!(matches!(Location::resolve("a/b@v1", base), Ok(Location::Path(_))), "a path that exists wins");
    says(Location::resolve("./a/b", base), "not a Hub id", "check the path");
    says(Location::resolve("a/b/../c", base), "not a Hub id", "check the path");
    says(Checkpoint::open(&Location::resolve("x/y", base).unwrap()), "was not downloaded", "hub::model");
    says(Location::resolve("stories260k", base), "no such file", "did you mean `builtin:stories260K`");
    says(Location::resolve("builtin:books-vald", base), "nothing of this name", "did you mean `builtin:books-valid`");
    says(Location::resolve("builtin:zzz", base), "nothing of this name", "`builtin:books-llama-7m`");
    says(Location::resolve("", base), "is empty", "builtin:");
    says(Location::resolve(&"x".repeat(5000), base), "no such file", "check the path");
    says(Location::resolve("a\0b", base), "no such file", "check the path");

    if cfg!(unix) {
        fs::create_dir(dir.path().join("builtin:stories260K")).unwrap();
        let here = Location::resolve("builtin:stories260K", base).unwrap();
        assert!(matches!(here, Location::Path(_)), "a path that exists always wins");
    }
}

// ---- writing ----

fn declaration() -> Vec<(String, DType, Vec<usize>)> {
    [("b", DType::BF16, vec![3]), ("a", DType::F32, vec![2, 2]), ("c", DType::F16, vec![5]), ("d", DType::F32, vec![1])]
        .map(|(name, dtype, shape)| (name.to_string(), dtype, shape))
        .to_vec()
}

fn write_all(folder: &Path, shard: u64) -> Vec<Tensor> {
    let mut writer = Writer::create(folder, declaration(), shard).unwrap();
    let mut tensors = Vec::new();
    for (name, _, shape) in declaration() {
        let tensor = ramp(shape.iter().product(), &shape);
        writer.write(&name, &tensor).unwrap();
        tensors.push(tensor);
    }
    writer.finish().unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    tensors
}

#[track_caller]
fn same(folder: &Path, tensors: &[Tensor]) {
    let checkpoint = open(folder).unwrap();
    for ((name, dtype, shape), tensor) in declaration().iter().zip(tensors) {
        assert_eq!(checkpoint.info(name).unwrap().dtype, safetensors::Dtype::from(*dtype));
        assert_eq!(values(&checkpoint.tensor_of(name, shape, DType::F32).unwrap()), values(tensor));
    }
}

#[test]
fn one_file_comes_back() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("deep/er");
    let tensors = write_all(&folder, u64::MAX);
    assert_eq!(names(&folder), ["config.json", "model.safetensors"]);
    same(&folder, &tensors);

    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("others read it too");
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    for info in metadata.tensors().values() {
        assert_eq!((8 + header + info.data_offsets.0) % (info.dtype.bitsize() / 8), 0, "aligned");
    }
}

#[test]
fn shards_come_back() {
    let dir = TempDir::new().unwrap();
    let tensors = write_all(dir.path(), 20);
    let shard = |i: usize| format!("model-0000{i}-of-00003.safetensors");
    let expected = ["config.json".to_string(), shard(1), shard(2), shard(3), "model.safetensors.index.json".into()];
    assert_eq!(names(dir.path()), expected);
    same(dir.path(), &tensors);

    let index: Value =
        serde_json::from_slice(&fs::read(dir.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 6 + 16 + 10 + 4);
    assert_eq!(index["weight_map"], json!({"a": shard(2), "b": shard(1), "c": shard(3), "d": shard(3)}));
}

#[test]
fn writing_is_the_same_every_time() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_all(one.path(), 20);
    write_all(two.path(), 20);
    write_all(two.path(), 20);
    for name in names(one.path()) {
        assert_eq!(fs::read(one.path().join(&name)).unwrap(), fs::read(two.path().join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("deep/er");
    let mut writer = Writer::create(&folder, declaration(), 20).unwrap();
    writer.write("b", &ramp(3, &[3])).unwrap();
    writer.write("a", &ramp(4, &[2, 2])).unwrap();
    assert_eq!(names(&folder).len(), 2, "both under temporary names");
    assert!(open(&folder).is_err());
    drop(writer);
    assert!(names(dir.path()).is_empty());

    let mut writer = Writer::create(dir.path(), declaration(), 20).unwrap();
    writer.write("b", &ramp(3, &[3])).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("still expects `a`"));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_writer_holds_its_caller_to_the_declaration() {
    let dir = TempDir::new().unwrap();
    let mut writer = Writer::create(dir.path(), declaration(), 20).unwrap();
    assert!(writer.write("a", &ramp(4, &[2, 2])).unwrap_err().to_string().contains("expects b, not `a`"));
    assert!(writer.write("b", &ramp(3, &[1, 3])).unwrap_err().to_string().contains("declared as [3]"));
    let twice = vec![("x".into(), DType::F32, vec![1]), ("x".into(), DType::F32, vec![1])];
    assert!(Writer::create(dir.path(), twice, 20).err().unwrap().to_string().contains("declared twice"));
    assert!(Writer::create(dir.path(), Vec::new(), 20).is_err());
}

#[test]
fn no_space_is_known_before_anything_is_written() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("out");
    let declared = vec![("x".to_string(), DType::F32, vec![1 << 20, 1 << 32])];
    says(Writer::create(&folder, declared, 1 << 30), "bytes are needed", "free some space");
    assert!(!folder.exists());
    let declared = vec![("x".to_string(), DType::F32, vec![usize::MAX, 2])];
    assert!(Writer::create(&folder, declared, 1 << 30).is_err());
    says(Writer::create(&folder, declaration(), 0), "shards of 0 bytes", "export.shard");
}

#[test]
fn other_weights_are_not_mixed_with_ours() {
    let dir = TempDir::new().unwrap();
    write_all(dir.path(), u64::MAX);
    let error = Writer::create(dir.path(), declaration(), 20);
    says(error, "model.safetensors: weights of another checkpoint", "another folder");
    same(dir.path(), &write_all(dir.path(), u64::MAX));
}

#[test]
fn atomic_files() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    write_atomically(&path, b"one").unwrap();
    write_atomically(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["a.json"]);
    let absent = dir.path().join("absent/a.json");
    assert!(write_atomically(&absent, b"").unwrap_err().to_string().contains("could not write it"));
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert!(write_atomically(&taken, b"").is_err());
    assert_eq!(names(dir.path()), ["a.json", "taken"], "no temporary file is left");
}

/// A temporary name may be taken by a link that leads to a file of the user.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_links() {
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("mine");
    fs::write(&mine, "precious").unwrap();
    std::os::unix::fs::symlink(&mine, dir.path().join(".a.json.partial")).unwrap();
    std::os::unix::fs::symlink(&mine, dir.path().join(".model.safetensors.partial")).unwrap();
    write_atomically(&dir.path().join("a.json"), b"one").unwrap();
    write_all(dir.path(), u64::MAX);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
    assert_eq!(names(dir.path()), ["a.json", "config.json", "mine", "model.safetensors"]);
    assert!(!dir.path().join("a.json").is_symlink());
}

/// Two tensors, one of more than one block of what a thread hashes at a time.
#[test]
fn a_digest_holds_all_of_a_model_and_nothing_else() {
    fn write(folder: &Path, shard: u64, values: &[f32], name: &str) {
        let large = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let small = ramp(4, &[2, 2]);
        let declared = vec![("a".to_string(), DType::F32, vec![values.len()]), (name.into(), DType::F32, vec![2, 2])];
        let mut writer = Writer::create(folder, declared, shard).unwrap();
        writer.write("a", &large).unwrap();
        writer.write(name, &small).unwrap();
        writer.finish().unwrap();
    }
    let digest = |shard: u64, values: &[f32], name: &str, config: &str, threads: usize| {
        let dir = TempDir::new().unwrap();
        write(dir.path(), shard, values, name);
        fs::write(dir.path().join("config.json"), config).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| open(&dir).unwrap().digest(&mut Silent).unwrap())
    };
    let values: Vec<f32> = (0..3 << 20).map(|i| i as f32).collect();
    let first = digest(u64::MAX, &values, "b", r#"{"x": 1}"#, 1);
    assert_eq!(first.len(), 64);
    assert_eq!(
        digest(100, &values, "b", r#"{ "x":1 }"#, 3),
        first,
        "shards, threads and white space are nothing of it"
    );
    assert_ne!(digest(u64::MAX, &values, "b", r#"{"x": 2}"#, 1), first);
    assert_ne!(digest(u64::MAX, &values, "c", r#"{"x": 1}"#, 1), first);
    for at in [0, 1 << 20, (3 << 20) - 1] {
        let mut other = values.clone();
        other[at] = f32::from_bits(other[at].to_bits() ^ 1);
        assert_ne!(digest(u64::MAX, &other, "b", r#"{"x": 1}"#, 1), first, "{at}");
    }
}

#[test]
fn tensor_maps_come_back() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.safetensors");
    let step = Tensor::from_vec(vec![7u32], 1, &Device::Cpu).unwrap();
    let turned = ramp(6, &[2, 3]).t().unwrap();
    let half = ramp(3, &[3]).to_dtype(DType::BF16).unwrap();
    let scalar = ramp(1, &[]);
    let tensors: BTreeMap<String, Tensor> =
        [("step", step), ("turned", turned), ("half", half), ("scalar", scalar)].map(|(n, t)| (n.into(), t)).into();
    let metadata = BTreeMap::from([("stage".to_string(), "lora \"x\"".to_string()), ("a".into(), "".into())]);
    save_tensors(&path, &tensors, &metadata).unwrap();
    let (back, notes) = load_tensors(&path).unwrap();
    assert_eq!(notes, metadata);
    assert_eq!(back.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &tensors {
        assert_eq!((back[name].dtype(), back[name].dims()), (tensor.dtype(), tensor.dims()));
        assert_eq!(values(&back[name]), values(tensor), "{name}");
    }
    assert_eq!(names(dir.path()), ["state.safetensors"]);

    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    says(load_tensors(&path), "truncated", "incomplete");
    fs::write(&path, file(r#"{"x":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, 1)).unwrap();
    says(load_tensors(&path), "stored as I8", "not written by subquad");
    says(load_tensors(&dir.path().join("absent")), "there is no such file", "check the path");
}
