//! Every family converted: gradients, export, reopening, generation in chunks and in steps, texts beyond the context.

use super::*;
use common::{difference, random};
use serde_json::Map;
use subquad::arch::{FORMAT, Scaling, Target};
use subquad::export::{ExportOptions, export};
use subquad::mixer::{Combine, Window};
use subquad::model::{Adapter, Conversion, Student};
use subquad::progress::Silent;
use subquad::stage::{LoraObjective, Match, TransferObjective, calibrate};
use subquad::train::{Objective, end_to_end, loss_only};

const WINDOW: usize = 8;
const MIXERS: [(&str, Option<Combine>); 3] =
    [("hedgehog", Some(Combine::Joint)), ("liger-gla", Some(Combine::Fixed)), ("gated-deltanet", None)];

impl Case {
    fn model_type(&self) -> String {
        let config: Map<String, serde_json::Value> =
            serde_json::from_slice(&fs::read(self.folder.join("config.json")).unwrap()).unwrap();
        config["model_type"].as_str().unwrap().into()
    }

    fn student(&self, model: &Model, mixer: &str, combine: Option<Combine>, softmax_layers: &[usize]) -> Student {
        let conversion = Conversion {
            format: FORMAT,
            teacher_model_type: self.model_type(),
            teacher: "a test's teacher".into(),
            mixer: mixer.into(),
            options: Map::new(),
            window: combine.map(|combine| Window { size: WINDOW, sinks: 0, combine }),
            softmax_layers: softmax_layers.to_vec(),
            trained_sequence: None,
        };
        Student::new(conversion, &model.spec, 0).unwrap()
    }
}

fn adapter() -> Adapter {
    Adapter { rank: 2, alpha: 4.0, targets: Target::ALL.to_vec() }
}

/// Tokens that a text of this model may have before the frequencies of its positions change.
fn steady(spec: &Spec) -> usize {
    let of = |scaling: &Scaling| match scaling {
        Scaling::Dynamic { context, .. } | Scaling::Long { context, .. } => *context,
        _ => usize::MAX,
    };
    spec.ropes.iter().map(|rope| of(&rope.scaling)).min().unwrap_or(usize::MAX)
}

#[test]
fn conversions_are_exported_and_go_on_alike_in_chunks_and_in_steps() {
    for case in Case::all() {
        let (checkpoint, teacher) = open(&case.folder);
        for (mixer, combine) in MIXERS {
            let what = format!("{} to {mixer}", case.name);
            // The last layer keeps its attention, and its window where it has one.
            let mut model = teacher.clone();
            let mut student = case.student(&model, mixer, combine, &[model.spec.layers - 1]);
            for (seed, tensor) in student.tensors.values_mut().enumerate() {
                *tensor = (&*tensor + random(seed as u64, tensor.dims(), 0.1)).unwrap();
            }
            let ids = case.ids("ids");
            calibrate(&model, &mut student, &ids, 1, Match::Error, &mut Silent).unwrap();
            student.adapt(adapter(), &model.spec, 1).unwrap();
            for (name, tensor) in student.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
                *tensor = random(name.len() as u64, tensor.dims(), 0.05);
            }
            let adapted = View::student(&model, &student).logits(&ids, 1).unwrap();
            student.merge(&mut model).unwrap();
            let merged = View::student(&model, &student).logits(&ids, 1).unwrap();
            assert!(largest(&adapted, &merged) < TOLERANCE, "{what}: merging changes the model");

            let dir = TempDir::new().unwrap();
            let to = dir.path().join("model");
            // Once as the teacher stores its weights, bf16.
            let dtype = (mixer != "liger-gla").then_some(DType::F32);
            let options = ExportOptions { shard_bytes: 1 << 30, dtype, base: None };
            let exported = export(&model, &student, &checkpoint, "", &options, &[], &to, &mut Silent);
            let exported = exported.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(exported.largest_difference, 0.0, "{what}");
            let (again, reopened) = open(&to);
            assert_eq!(reopened.spec, teacher.spec, "{what}");
            let decoder = &again.config()["subquad_decoder"];
            assert_eq!(*decoder, serde_json::to_value(&teacher.spec).unwrap(), "{what}");
            let mixers = Student::load(&again, &reopened.spec).unwrap().unwrap();
            let names = |c: &Checkpoint| -> Vec<String> {
                c.tensors().iter().map(|t| t.name.clone()).filter(|name| !name.contains(".mixer.")).collect()
            };
            assert_eq!(names(&again), names(&checkpoint), "{what}");

            let view = View::student(&reopened, &mixers);
            let text = &ids[..ids.len().min(steady(&reopened.spec))];
            let (prompt, rest) = text.split_at(text.len() / 2);
            let (mut chunked, mut stepped) = (Session::new(view), Session::new(view));
            let mut at_once = chunked.feed(prompt).unwrap();
            let mut one_by_one = prompt.iter().map(|id| stepped.feed(&[*id]).unwrap()).last().unwrap();
            for (i, id) in rest.iter().enumerate() {
                assert!(difference(&at_once, &one_by_one) < 1e-4, "{what}: token {i}");
                at_once = chunked.feed(&[*id]).unwrap();
                one_by_one = stepped.feed(&[*id]).unwrap();
            }
            let whole = view.logits(text, 1).unwrap().get(0).unwrap().get(text.len() - 1).unwrap();
            assert!(difference(&whole, &at_once) < 1e-4 && difference(&whole, &one_by_one) < 1e-4, "{what}");
        }
    }
}

/// Central differences of the loss along its gradient, through every kind of block.
#[test]
fn gradients_are_differences() {
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        let mut student = case.student(&model, "hedgehog", Some(Combine::Joint), &[model.spec.layers - 1]);
        student.adapt(adapter(), &model.spec, 0).unwrap();
        for (name, tensor) in student.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
            *tensor = random(name.len() as u64, tensor.dims(), 0.05);
        }
        let groups = LoraObjective::trained(&student, &model, &adapter(), true, 0.0);
        let names: Vec<String> = groups.into_iter().flat_map(|group| group.names).collect();
        let ids = case.ids("ids");
        let trains = |name: &str| names.iter().any(|n| n == name);
        let (_, gradients) = end_to_end(View::student(&model, &student), &ids, 1, 1.0, &trains, false).unwrap();
        assert_eq!(gradients.len(), names.len(), "{}", case.name);
        let square: f32 =
            gradients.values().map(|g| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sum();
        let length = f64::from(square.sqrt());
        let loss_at = |step: f64| {
            let mut moved = case.student(&model, "hedgehog", Some(Combine::Joint), &[model.spec.layers - 1]);
            moved.adapter = student.adapter.clone();
            moved.tensors = student.tensors.clone();
            for (name, gradient) in &gradients {
                let along = (gradient * (step / length)).unwrap();
                moved.tensors.insert(name.clone(), (&student.tensors[name] + along).unwrap());
            }
            loss_only(View::student(&model, &moved), &ids, 1).unwrap()
        };
        let step = 2e-3;
        let measured = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        assert!((measured / length - 1.0).abs() < 5e-3, "{}: measured {measured}, computed {length}", case.name);
    }
}

/// A step of a stage along its gradient makes the stage's loss smaller.
fn step_learns(objective: &dyn Objective, student: &mut Student, ids: &[u32], what: &str) {
    let (before, gradients) = objective.gradients(student, ids, 1).unwrap();
    let square: f32 = gradients.values().map(|g| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sum();
    let rate = 0.01 / f64::from(square.sqrt()).max(1e-6);
    for (name, gradient) in &gradients {
        let moved = (&student.tensors[name] - (gradient * rate).unwrap()).unwrap();
        student.tensors.insert(name.clone(), moved);
    }
    let after = objective.loss(student, ids, 1).unwrap();
    assert!(after < before, "{what}, {}: {before} to {after}", objective.name());
}

#[test]
fn stages_learn() {
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        let ids = case.ids("ids");
        for (mixer, combine) in MIXERS {
            let what = format!("{} to {mixer}", case.name);
            let mut student = case.student(&model, mixer, combine, &[]);
            if !student.learned_tensors().is_empty() {
                let weights = if mixer == "hedgehog" { 1.0 } else { 0.0 };
                let objective = TransferObjective { model: &model, output: 1.0, weights };
                step_learns(&objective, &mut student, &ids, &what);
            }
            student.adapt(adapter(), &model.spec, 0).unwrap();
            let groups = LoraObjective::trained(&student, &model, &adapter(), true, 0.0);
            step_learns(&LoraObjective::new(&model, 1.0, false, &groups), &mut student, &ids, &what);
        }
    }
}

#[test]
fn texts_beyond_the_context() {
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        let tokens = model.spec.context + 24;
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 3 + i * 7 % 40).collect();
        let student = case.student(&model, "gated-deltanet", None, &[]);
        let view = View::student(&model, &student);
        let (mut chunked, mut stepped) = (Session::new(view), Session::new(view));
        match model.spec.positions {
            // There is nothing to add to the embedding.
            Some(learned) => {
                let what = format!("has learned {} positions", learned.tokens());
                let refused = chunked.feed(&ids).unwrap_err();
                assert!(refused.to_string().contains(&what), "{}: {refused}", case.name);
                assert!(view.logits(&ids, 1).unwrap_err().to_string().contains(&what), "{}", case.name);
                assert_eq!((refused.exit_code(), learned.tokens()), (1, 64), "{}", case.name);
                for id in &ids[..learned.tokens()] {
                    stepped.feed(&[*id]).unwrap();
                }
                assert!(stepped.feed(&[3]).unwrap_err().to_string().contains(&what), "{}", case.name);
            }
            None => {
                let last = chunked.feed(&ids).unwrap();
                let values = last.to_vec1::<f32>().unwrap();
                assert!(values.iter().all(|x| x.is_finite()), "{}", case.name);
                let steps = ids.iter().map(|id| stepped.feed(&[*id]).unwrap()).last().unwrap();
                assert!(difference(&steps, &last) < 1e-4, "{}", case.name);
                assert_eq!(stepped.state_bytes(), chunked.state_bytes(), "{}", case.name);
            }
        }
    }
}

/// Rows of different lengths, padded on the left, go on as each of them alone: teachers and students.
#[test]
#[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
fn padded_batches_generate_as_their_rows_alone() {
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        let student = case.student(&model, "hedgehog", Some(Combine::Joint), &[]);
        let recurrent = case.student(&model, "gated-deltanet", None, &[]);
        for view in [View::teacher(&model), View::student(&model, &student), View::student(&model, &recurrent)] {
            let most = steady(&model.spec).min(20);
            let ids = case.ids("ids");
            let lengths = [most * 3 / 5, most * 2 / 5];
            let (tokens, news) = (lengths[0], most - lengths[0]);
            let documents = Documents::new(tokens, lengths.map(|n| vec![tokens - n..tokens]).to_vec()).unwrap();
            let padded: Vec<u32> = lengths
                .iter()
                .flat_map(|&n| std::iter::repeat_n(2, tokens - n).chain(ids[..n].iter().copied()))
                .collect();
            let mut batch = Session::of_batch(view, 2);
            let mut rows = lengths.map(|_| Session::new(view));
            let mut logits = batch.feed_rows(&padded, &documents).unwrap();
            let mut alone: Vec<Tensor> =
                rows.iter_mut().zip(lengths).map(|(row, n)| row.feed(&ids[..n]).unwrap()).collect();
            for step in 0..=news {
                for (row, alone) in alone.iter().enumerate() {
                    let d = difference(&logits.get(row).unwrap(), alone);
                    assert!(d < 1e-4, "{}: row {row}, step {step}: {d}", case.name);
                }
                let next: Vec<u32> = logits.argmax(1).unwrap().to_vec1().unwrap();
                if step < news {
                    logits = batch.feed_rows(&next, &Documents::whole(2, 1)).unwrap();
                    alone = rows.iter_mut().zip(&next).map(|(row, id)| row.feed(&[*id]).unwrap()).collect();
                }
            }
        }
    }
}

/// A teacher with windows keeps no more than these of its keys and values, however long the text.
#[test]
fn windows_of_teachers_bound_their_state() {
    let mut windowed = 0;
    for case in Case::all() {
        let (_, model) = open(&case.folder);
        if model.spec.blocks.iter().any(|block| block.window.is_none_or(|window| window > WINDOW)) {
            continue;
        }
        windowed += 1;
        let mut session = Session::new(View::teacher(&model));
        session.feed(&case.ids("ids")).unwrap();
        let state = session.state_bytes();
        session.feed(&case.ids("ids")).unwrap();
        assert_eq!(session.state_bytes(), state, "{}", case.name);
    }
    assert!(windowed >= 3);
}
