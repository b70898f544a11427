//! Calibration of every registered mixer on a real teacher: nothing is trained, and yet it is worth more than silence.

mod common;

use common::models::{self, teacher};
use subquad::checkpoint::Location;
use subquad::evaluate::{EvaluationText, evaluate};
use subquad::mixer::{MIXERS, Window};
use subquad::model::{Model, Student, Target};
use subquad::progress::Silent;
use subquad::stage::{Match, calibrate};
use subquad::text::{Tokenizer, Windows, documents, tokenize};

const SEQUENCE: usize = 256;

fn windows(model_name: &str, text: &str, tokens: usize) -> Windows {
    let checkpoint =
        subquad::checkpoint::Checkpoint::open(&Location::resolve(&format!("builtin:{model_name}"), None).unwrap());
    let checkpoint = checkpoint.unwrap();
    let spec = subquad::arch::Spec::of(&checkpoint).unwrap();
    let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied()).unwrap();
    let text = documents(&Location::resolve(text, None).unwrap()).unwrap();
    let ids = tokenize(&text, &tokenizer, Some(tokens), &mut |_| ()).unwrap();
    Windows::new(ids, SEQUENCE, "test").unwrap()
}

fn perplexities(model: &Model, student: &Student, windows: &Windows) -> (f64, Option<f64>) {
    let text = EvaluationText::new("test", windows.clone());
    let report = evaluate(model, Some(student), Some(model), &text, &mut Silent).unwrap();
    let silent = report.controls.iter().find(|c| c.name == "silent mixer").map(|c| c.score.perplexity);
    (report.model.perplexity, silent)
}

#[test]
fn every_mixer_beats_the_silent_one() {
    let model = teacher("stories260K");
    let train = windows("stories260K", "builtin:tinystories", 2048);
    let valid = windows("stories260K", "builtin:tinystories-valid", 2048);
    let ids: Vec<u32> = (0..4).flat_map(|i| train.get(i).to_vec()).collect();
    let mut wrong = vec![];
    for m in MIXERS {
        for combine in std::iter::once(None).chain(m.combine.first().map(Some)) {
            let window = combine.map(|&combine| Window { size: 16, sinks: 0, combine });
            for rule in [Match::Error, Match::Size] {
                let mut student = models::student_of(m.name, &model, window, &[]);
                let layers = calibrate(&model, &mut student, &ids, 4, rule, &mut Silent).unwrap();
                let scaled = student.mixer(0).scale().name().is_some();
                for l in &layers {
                    let what = format!("{} beside {combine:?}, {rule:?}: {l:?}", m.name);
                    let fits = match rule {
                        Match::Error => l.error_after <= l.error_before + 1e-3 && (!scaled || l.error_after < 1.0),
                        Match::Size => !scaled || (l.size_after - 1.0).abs() < 0.05,
                    };
                    if !fits || !l.error_after.is_finite() {
                        wrong.push(what);
                    }
                }
                let (calibrated, silent) = perplexities(&model, &student, &valid);
                if silent.is_none_or(|silent| calibrated >= silent) {
                    wrong.push(format!("{} beside {combine:?}, {rule:?}: {calibrated}, silent {silent:?}", m.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Weights that are finite and lead to what is not, and an attention that says nothing: the layer is named, and the student
/// stays as it was.
#[test]
fn what_is_not_finite_is_no_calibration() {
    let whole = teacher("stories260K");
    let ids = windows("stories260K", "builtin:tinystories", 512).get(0).to_vec();
    for (factor, what) in [
        (0.0, "calibrate: the error of layer 2, whose attention gives nothing but zeros in the teacher, is not finite"),
        (1e38, "calibrate: the attention of layer 2 in the teacher is not finite"),
    ] {
        let mut model = whole.clone();
        let weight = (model.layers[2].weight(Target::V).unwrap() * factor).unwrap();
        model.set_weight(2, Target::V, weight);
        let mut student = models::student_of("hedgehog", &model, None, &[]);
        let before: Vec<_> =
            student.tensors.values().map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        let error = calibrate(&model, &mut student, &ids, 1, Match::Error, &mut Silent).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (what, 2));
        assert!(error.hint().unwrap().contains("student.keep_softmax"));
        let after: Vec<_> =
            student.tensors.values().map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        assert_eq!(after, before);
    }
}
