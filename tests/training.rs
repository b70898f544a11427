//! Whole training steps against an f64 PyTorch run (fixtures of tests/python/step_fixtures.py), and the properties that
//! training promises: every trained tensor learns, frozen ones do not, recomputing and resuming change nothing.

mod common;

use candle_core::Tensor;
use common::{difference, largest, models};
use std::collections::BTreeMap;
use subquad::Result;
use subquad::checkpoint::load_tensors;
use subquad::model::{Adapter, Student, Target, View};
use subquad::progress::Silent;
use subquad::stage::{LoraObjective, TransferObjective};
use subquad::text::Windows;
use subquad::train::{
    AdamW, Batch, Group, Metric, Objective, Optimizer, Schedule, ScheduleKind, Store, Trainer, TrainingData, end_to_end,
};

type Tensors = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> Tensors {
    let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    load_tensors(path.as_ref()).unwrap().0
}

fn adapter() -> Adapter {
    Adapter { rank: 8, alpha: 16.0, targets: vec![Target::Q, Target::K, Target::V, Target::O] }
}

fn plain(lr: f64) -> Optimizer {
    Optimizer { lr, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip: None }
}

/// `final.0.w_q` -> `model.layers.0.self_attn.mixer.q_map`, `final.0.q_proj.a` -> `...q_proj.lora_A.weight`.
fn our_name(theirs: &str) -> String {
    let (layer, rest) = theirs.split_once('.').unwrap();
    let ours = match rest {
        "w_q" => "mixer.q_map".to_string(),
        "w_k" => "mixer.k_map".to_string(),
        "factor" => "mixer.window_factor".to_string(),
        lora => lora.replace(".a", ".lora_A.weight").replace(".b", ".lora_B.weight"),
    };
    format!("model.layers.{layer}.self_attn.{ours}")
}

fn named(x: &Tensors, prefix: &str) -> Tensors {
    x.iter().filter_map(|(k, t)| Some((our_name(k.strip_prefix(prefix)?), t.clone()))).collect()
}

/// Three updates on the fixture's batch: losses, first gradients, final tensors.
fn steps_against_pytorch(x: &Tensors, student: &mut Student, objective: &dyn Objective, groups: Vec<Group>, lr: f64) {
    let ids = x["ids"].flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let losses = x["losses"].to_vec1::<f32>().unwrap();
    let mut optimizer = AdamW::new(plain(lr), groups);
    for (i, want) in losses.iter().enumerate() {
        let (loss, gradients) = objective.gradients(student, &ids, 2).unwrap();
        assert!((loss / f64::from(*want) - 1.0).abs() < 1e-4, "loss {i}: {loss} instead of {want}");
        assert!((objective.loss(student, &ids, 2).unwrap() / loss - 1.0).abs() < 1e-5);
        if i == 0 {
            for (name, want) in named(x, "grad.") {
                let d = difference(&gradients[&name], &want);
                assert!(d < 1e-3 || largest(&gradients[&name], &want) < 1e-6, "gradient of {name} differs by {d:.1e}");
            }
        }
        optimizer.update(&mut student.tensors, &gradients, lr).unwrap();
    }
    for (name, want) in named(x, "final.") {
        let d = difference(&student.tensors[&name], &want);
        assert!(d < 1e-2, "{name} differs by {d:.1e} after the updates");
    }
}

#[test]
fn attention_transfer_is_pytorchs() {
    let x = fixture("step_stories260K_attention-transfer");
    let model = models::teacher("stories260K");
    let mut student = models::student(&model, Some(16), &[]);
    student.tensors.extend(named(&x, "initial."));
    let groups = TransferObjective::trained(&student, 0.0);
    let objective = TransferObjective { model: &model, output: 1000.0, weights: 0.0 };
    steps_against_pytorch(&x, &mut student, &objective, groups, 1e-2);
}

#[test]
fn lora_is_pytorchs() {
    let x = fixture("step_stories260K_lora");
    let model = models::teacher("stories260K");
    let mut student = models::student(&model, Some(16), &[]);
    student.adapt(adapter(), &model.spec, 0).unwrap();
    student.tensors.extend(named(&x, "initial."));
    let groups = LoraObjective::trained(&student, &model, &adapter(), false, 0.0);
    let objective = LoraObjective::new(&model, 1.0, false, &groups);
    steps_against_pytorch(&x, &mut student, &objective, groups, 1e-4);
}

#[test]
fn adamw_is_torchs() {
    let path = format!("{}/tests/fixtures/optimizer.json", env!("CARGO_MANIFEST_DIR"));
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tensor = |v: &serde_json::Value| {
        let data: Vec<f32> = v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let n = data.len();
        Tensor::from_vec(data, n, &candle_core::Device::Cpu).unwrap()
    };
    let tensors = |v: &serde_json::Value| -> Tensors {
        v.as_object().unwrap().iter().map(|(k, v)| (k.clone(), tensor(v))).collect()
    };
    for case in fixture["adamw"].as_array().unwrap() {
        let betas = case["betas"].as_array().unwrap();
        let base = 1e-2;
        let groups = case["groups"].as_object().unwrap().iter().map(|(name, g)| Group {
            names: vec![name.clone()],
            lr_scale: g["lr"].as_f64().unwrap() / base,
            weight_decay: g["weight_decay"].as_f64().unwrap(),
        });
        let settings = Optimizer {
            lr: base,
            betas: [betas[0].as_f64().unwrap(), betas[1].as_f64().unwrap()],
            eps: case["eps"].as_f64().unwrap(),
            weight_decay: 0.0,
            clip: case["clip"].as_f64(),
        };
        let mut optimizer = AdamW::new(settings, groups.collect());
        let mut parameters = tensors(&case["initial"]);
        let gradients = case["gradients"].as_array().unwrap();
        for (i, gradient) in gradients.iter().enumerate() {
            let norm = optimizer.update(&mut parameters, &tensors(gradient), base).unwrap();
            assert!((norm / case["norms"][i].as_f64().unwrap() - 1.0).abs() < 1e-5);
            for (name, want) in tensors(&case["parameters"][i]) {
                assert!(difference(&parameters[&name], &want) < 1e-6, "{} {name} after {i}", case["name"]);
            }
        }
    }
}

#[test]
fn every_trained_tensor_gets_a_gradient_and_frozen_ones_none() {
    let model = models::teacher("stories260K");
    let ids: Vec<u32> = (0..2 * 96).map(|i| (i * 37 + 11) % 512).collect();
    for window in [None, Some(16)] {
        let mut student = models::student(&model, window, &[]);
        let check = |gradients: &Tensors, groups: &[Group], what: &str| {
            let names: Vec<&String> = groups.iter().flat_map(|g| &g.names).collect();
            assert_eq!(gradients.len(), names.len(), "{what}: exactly what trains has a gradient");
            for name in names {
                let values = gradients[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values.iter().all(|v| v.is_finite()), "{what}: {name} is not finite");
                assert!(values.iter().any(|v| *v != 0.0), "{what}: {name} is zero");
            }
        };
        let groups = TransferObjective::trained(&student, 0.0);
        for weights in [0.0, 1.0] {
            let objective = TransferObjective { model: &model, output: 1000.0, weights };
            check(&objective.gradients(&student, &ids, 2).unwrap().1, &groups, "attention transfer");
        }
        let adapter = Adapter { targets: Target::ALL.to_vec(), ..adapter() };
        student.adapt(adapter.clone(), &model.spec, 0).unwrap();
        for (name, t) in student.tensors.iter_mut().filter(|(n, _)| n.contains("lora_B")) {
            *t = common::random(name.len() as u64, t.dims(), 0.05); // at B = 0, A has no gradient
        }
        for train_mixer in [false, true] {
            let groups = LoraObjective::trained(&student, &model, &adapter, train_mixer, 0.0);
            let gradients = LoraObjective::new(&model, 1.0, false, &groups).gradients(&student, &ids, 2).unwrap().1;
            check(&gradients, &groups, "LoRA");
        }
    }
}

/// Central differences of the loss along a random direction, through all layers.
#[test]
fn end_to_end_gradients_are_differences() {
    let model = models::teacher("stories260K");
    let mut student = models::student(&model, Some(16), &[]);
    student.adapt(adapter(), &model.spec, 0).unwrap();
    for (name, t) in student.tensors.iter_mut().filter(|(n, _)| n.contains("lora_B")) {
        *t = common::random(name.len() as u64, t.dims(), 0.05);
    }
    let ids: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % 512).collect();
    let (_, gradients) = end_to_end(View::student(&model, &student), &ids, 1, 1.0, &|_| true, false).unwrap();
    for (i, (name, gradient)) in gradients.iter().enumerate().filter(|(i, _)| i % 7 == 0) {
        let direction = common::random(100 + i as u64, gradient.dims(), 1.0);
        let original = student.tensors[name].clone();
        let mut loss_at = |h: f64| {
            student.tensors.insert(name.clone(), (&original + (&direction * h).unwrap()).unwrap());
            subquad::train::loss_only(View::student(&model, &student), &ids, 1).unwrap()
        };
        let h = 3e-3;
        let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
        let want = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() as f64;
        student.tensors.insert(name.clone(), original);
        assert!((slope - want).abs() < 2e-3 + 0.03 * want.abs(), "{name}: slope {slope}, gradient {want}");
    }
}

#[test]
fn recomputing_gives_the_same_gradients() {
    let model = models::teacher("stories260K");
    let mut student = models::student(&model, Some(16), &[]);
    student.adapt(adapter(), &model.spec, 3).unwrap();
    let ids: Vec<u32> = (0..2 * 64).map(|i| (i * 37 + 11) % 512).collect();
    let run = |recompute| end_to_end(View::student(&model, &student), &ids, 2, 1.0, &|_| true, recompute).unwrap();
    let (kept, again) = (run(false), run(true));
    assert_eq!(kept.0, again.0);
    for (name, g) in kept.1 {
        assert_eq!(largest(&g, &again.1[&name]), 0.0, "{name}");
    }
}

/// A store in memory that can refuse to go on after some steps.
#[derive(Default)]
struct Memory {
    saved: Option<(Tensors, BTreeMap<String, String>)>,
    losses: BTreeMap<u64, f64>,
    stop_after: Option<u64>,
}

impl Store for Memory {
    fn load(&mut self) -> Result<Option<(Tensors, BTreeMap<String, String>)>> {
        Ok(self.saved.clone())
    }
    fn save(&mut self, tensors: Tensors, words: BTreeMap<String, String>) -> Result<()> {
        self.saved = Some((tensors, words));
        Ok(())
    }
    fn metric(&mut self, metric: &Metric) -> Result<()> {
        self.losses.insert(metric.step, metric.loss);
        match self.stop_after {
            Some(step) if metric.step == step => Err(subquad::Error::Interrupted),
            _ => Ok(()),
        }
    }
    fn rewind(&mut self, step: u64) -> Result<()> {
        self.losses.retain(|s, _| *s <= step);
        Ok(())
    }
}

/// A run that dies between saves and starts again ends with the same bits as one that does not, for every schedule.
#[test]
fn resuming_changes_nothing() {
    let model = models::teacher("stories260K");
    let ids: Vec<u32> = (0..64 * 40).map(|i| (i * i * 7 + i * 3) % 512).collect();
    let windows = Windows::new(ids.clone(), 64, "test").unwrap();
    let held_out = Windows::new(ids[..128].to_vec(), 64, "test").unwrap();
    let plateau = ScheduleKind::Plateau { factor: 0.1, patience: 0, min_lr: 1e-5, every: 2 };
    for kind in [ScheduleKind::Constant, ScheduleKind::Cosine { min_lr: 1e-4 }, plateau] {
        let objective = TransferObjective { model: &model, output: 1000.0, weights: 0.0 };
        let run = |stops: &[u64]| {
            let mut store = Memory::default();
            for stop in stops.iter().map(|s| Some(*s)).chain([None]) {
                store.stop_after = stop;
                let mut student = models::student(&model, Some(16), &[]);
                let trainer = Trainer {
                    stage: "test",
                    steps: 9,
                    optimizer: Optimizer { clip: Some(1.0), ..plain(1e-2) },
                    schedule: Schedule { kind, warmup: 2 },
                    batch: Batch { size: 2, accumulate: 2 },
                    save_every: 3,
                    groups: TransferObjective::trained(&student, 0.0),
                };
                let data = TrainingData { windows: &windows, held_out: Some(&held_out), seed: 5 };
                match trainer.run(&mut student, &objective, &data, &mut store, &mut Silent) {
                    Ok(()) => return (student.tensors, store.losses),
                    Err(subquad::Error::Interrupted) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            unreachable!()
        };
        let (whole, losses) = run(&[]);
        let (resumed, resumed_losses) = run(&[2, 5, 8]);
        assert_eq!(losses, resumed_losses);
        for (name, t) in &whole {
            assert_eq!(largest(t, &resumed[name]), 0.0, "{name} under {kind:?}");
        }
        assert!(losses[&9] < losses[&1], "{losses:?}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_the_layer() {
    let model = models::teacher("stories260K");
    let mut student = models::student(&model, Some(16), &[]);
    let name = student.tensor_name(3, "q_map");
    let broken = (&student.tensors[&name] * f64::NAN).unwrap();
    student.tensors.insert(name, broken);
    let before = student.tensors.clone();
    let windows = Windows::new((0..640).map(|i| i % 512).collect(), 64, "test").unwrap();
    let trainer = Trainer {
        stage: "1-attention-transfer",
        steps: 4,
        optimizer: plain(1e-2),
        schedule: Schedule { kind: ScheduleKind::Constant, warmup: 0 },
        batch: Batch { size: 1, accumulate: 1 },
        save_every: 1,
        groups: TransferObjective::trained(&student, 0.0),
    };
    let objective = TransferObjective { model: &model, output: 1000.0, weights: 0.0 };
    let data = TrainingData { windows: &windows, held_out: None, seed: 0 };
    let mut store = Memory::default();
    let error = trainer.run(&mut student, &objective, &data, &mut store, &mut Silent).unwrap_err();
    assert_eq!(error.to_string(), "1-attention-transfer, step 1: the loss of layer 3 is not finite");
    assert_eq!(error.exit_code(), 2);
    assert!(store.saved.is_none());
    for (name, t) in &before {
        let same = t
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .zip(student.tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name} was changed");
    }
}
