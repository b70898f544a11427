//! Evaluation against transformers' own likelihood, and on students that must equal their teacher.

mod common;

use candle_core::Tensor;
use common::models::{student, student_of, teacher};
use subquad::checkpoint::load_tensors;
use subquad::evaluate::{EvaluationText, Report, evaluate};
use subquad::mixer::{Branches, Combine, MIXERS, Window};
use subquad::model::{Flow, LayerHook, Model, Student, Target, View};
use subquad::progress::Silent;
use subquad::text::Windows;

fn run(model: &Model, student: Option<&Student>, teacher: Option<&Model>, windows: &Windows) -> Report {
    evaluate(model, student, teacher, &EvaluationText::new("test", windows.clone()), &mut Silent).unwrap()
}

fn some_windows() -> Windows {
    Windows::new((0..64 * 9).map(|i| (i * i * 7 + i * 3) % 512).collect(), 64, "test").unwrap()
}

#[test]
fn perplexity_is_transformers() {
    for name in ["stories260K", "books-llama-7m"] {
        let path = format!("{}/tests/fixtures/teacher_{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let (x, _) = load_tensors(path.as_ref()).unwrap();
        let ids = x["ids"].flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let want = f64::from(x["nll"].to_vec1::<f32>().unwrap()[0]).exp();
        let windows = Windows::new(ids.clone(), ids.len(), "test").unwrap();
        let report = run(&teacher(name), None, None, &windows);
        assert_eq!(report.tokens, ids.len() as u64 - 1);
        assert!((report.model.perplexity / want - 1.0).abs() < 1e-5, "{} instead of {want}", report.model.perplexity);
        assert!(report.model.kl.is_none() && report.teacher_perplexity.is_none() && report.controls.is_empty());
    }
}

/// With every layer kept softmax, or a window as long as the text, nothing was replaced.
#[test]
fn students_that_lost_nothing_equal_their_teacher() {
    let model = teacher("stories260K");
    for student in [student(&model, Some(16), &[0, 1, 2, 3, 4]), student(&model, Some(64), &[])] {
        let report = run(&model, Some(&student), Some(&model), &some_windows());
        assert!((report.ratio().unwrap() - 1.0).abs() < 1e-6, "{report:?}");
        assert!(report.layer_error().is_none_or(|error| error < 1e-6), "{report:?}");
        assert!(report.model.kl.unwrap().abs() < 1e-6 && report.model.top1.unwrap() > 0.999, "{report:?}");
    }
}

/// Of an untrained student, whose projections are the teacher's: both outputs through the teacher's last projection.
#[test]
fn layer_errors_are_those_of_their_definition() {
    let model = teacher("stories260K");
    let untrained = student(&model, Some(16), &[3]);
    let windows = some_windows();
    let report = run(&model, Some(&untrained), Some(&model), &windows);
    let ids: Vec<u32> = (0..windows.len()).flat_map(|i| windows.get(i).to_vec()).collect();
    let mut layers = vec![];
    let view = View::student(&model, &untrained);
    let hook = &mut |hook: LayerHook| {
        if untrained.replaced(hook.layer) {
            let params = view.bind(hook.layer, None, |_| false).mixer;
            let own = untrained.mixer(hook.layer).mix(hook.heads, &params, None, Branches::Both)?;
            let o = model.layers[hook.layer].weight(Target::O)?.t()?;
            let [own, target] = [own.value(), hook.output.value()].map(|x| x.flatten_from(2)?.broadcast_matmul(&o));
            let (own, target) = (own?, target?);
            let square = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
            layers.push((hook.layer, f64::from(square(&(own - &target)?)? / square(&target)?)));
        }
        Ok(Flow::Continue)
    };
    View::teacher(&model).run(&ids, windows.len(), hook).unwrap();
    assert_eq!(layers.iter().map(|l| l.0).collect::<Vec<_>>(), [0, 1, 2, 4]);
    assert_eq!(report.layer_errors.len(), layers.len());
    for (got, (layer, want)) in report.layer_errors.iter().zip(&layers) {
        assert!(got.layer == *layer && (got.error / want - 1.0).abs() < 1e-4, "{got:?} instead of {want}");
    }
    let mean = layers.iter().map(|l| l.1).sum::<f64>() / 4.0;
    assert!((report.layer_error().unwrap() / mean - 1.0).abs() < 1e-4 && mean > 0.0);
}

#[test]
fn controls_show_what_each_branch_does() {
    let model = teacher("stories260K");
    let untrained = student(&model, Some(16), &[]);
    let report = run(&model, Some(&untrained), Some(&model), &some_windows());
    let names: Vec<&str> = report.controls.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["window only", "linear only", "bare window", "silent mixer"]);
    let perplexity = |i: usize| report.controls[i].score.perplexity;
    assert_eq!(perplexity(0), perplexity(2), "nothing was trained: the bare window is the student's");
    assert!(perplexity(3) > perplexity(0), "silence is worse than a window");
    assert!(perplexity(1) > perplexity(0) && report.model.kl.unwrap() > 0.0);

    let linear = student(&model, None, &[]);
    let report = run(&model, Some(&linear), Some(&model), &some_windows());
    assert_eq!(report.controls.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["silent mixer"]);
    // Every row of a report is there in its JSON, and comes back.
    let json = serde_json::to_string(&report).unwrap();
    for key in ["tokens", "perplexity", "teacher_perplexity", "kl", "top1", "sequence", "controls"] {
        assert!(json.contains(&format!("\"{key}\"")), "{json}");
    }
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

/// Where the window covers every key, the linear branch of a joint mixer sees nothing, and switching it off changes
/// nothing: the trained scale of the output stays. The untrained window is then the teacher.
#[test]
fn window_only_keeps_what_was_trained() {
    let model = teacher("stories260K");
    let window = Window { size: 64, sinks: 0, combine: Combine::Joint };
    let mut tested = 0;
    for mixer in MIXERS.iter().filter(|m| m.combine.contains(&Combine::Joint)).map(|m| m.name) {
        let mut scaled = student_of(mixer, &model, Some(window), &[]);
        let scales = scaled.tensors.iter_mut().filter(|(name, _)| name.ends_with("output_scale"));
        if scales.map(|(_, t)| *t = (&*t * 0.8).unwrap()).count() == 0 {
            continue;
        }
        tested += 1;
        let report = run(&model, Some(&scaled), Some(&model), &some_windows());
        let perplexity = |name| report.control(name).unwrap().perplexity;
        let (own, teacher) = (report.model.perplexity, report.teacher_perplexity.unwrap());
        assert!((perplexity("window only") / own - 1.0).abs() < 1e-6, "{mixer}: {report:?}");
        assert!((perplexity("bare window") / teacher - 1.0).abs() < 1e-6, "{mixer}: {report:?}");
        assert!((own / teacher - 1.0).abs() > 1e-3, "{mixer}: the scale has an effect");
    }
    assert!(tested >= 5, "{tested} mixers have a scale beside a joint window");
}
