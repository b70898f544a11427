//! Round trips.

use super::*;

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
fn a_folder_that_lost_its_tied_head_to_another_program_is_the_same_model() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let to = dir.path().join("model");
    case.plain(&to);
    let config = json_of(&to.join("config.json"));
    let words = |case: &Case| {
        let (mut session, mut sampler) =
            (Session::new(View::student(&case.model, &case.student)), Sampler::new(0.0, 1.0, 0));
        let mut last = session.feed(&[1, 403, 407, 261, 378]).unwrap();
        let mut ids = vec![];
        for _ in 0..20 {
            ids.push(sampler.next(&last).unwrap());
            last = session.feed(&ids[ids.len() - 1..]).unwrap();
        }
        ids
    };
    for lost in [None, Some(Value::Null)] {
        let mut config = config.clone();
        assert_eq!(config.remove("tie_word_embeddings"), Some(json!(true)));
        config.extend(lost.map(|value| ("tie_word_embeddings".into(), value)));
        fs::write(to.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let again = open(&to);
        assert!(again.model.spec.tied);
        assert_eq!(largest(&logits(&again), &logits(&case)), 0.0);
        assert_eq!(words(&again), words(&case));
    }
    // What config.json says itself counts, and where nothing says it, the family's default.
    let refused = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut config = config.clone();
        change(&mut config);
        fs::write(to.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&Location::Path(to.clone())).unwrap();
        says(Spec::of(&checkpoint), "there is no tensor `lm_head.weight`, and `tie_word_embeddings` is not true");
    };
    refused(&|config| _ = config.insert("tie_word_embeddings".into(), json!(false)));
    refused(&|config| {
        config.remove("tie_word_embeddings");
        config["subquad_decoder"].as_object_mut().unwrap().remove("tied");
    });
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
