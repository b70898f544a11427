//! What a recipe asks of its teacher, or of its mixer, and cannot have: found before anything runs, all of it at once.

use crate::arch::Spec;
use crate::mixer::{Incompatibility, NO_WEIGHTS};
use crate::model::{Student, Target};
use crate::recipe::{Recipe, StageRecipe};

/// A path in the recipe, what is wrong there, and a hint.
type Refusal = (String, String, String);

/// All refusals of a student whose layers `replaced` are other than the teacher's.
pub(super) fn refused(recipe: &Recipe, spec: &Spec, outline: &Student, replaced: &[usize]) -> Vec<Refusal> {
    let mut all = layers(recipe, spec, replaced);
    all.extend(positions(recipe, spec));
    let incompatibilities = incompatibilities(outline, replaced, longest(recipe));
    all.extend(incompatibilities.into_iter().map(|incompatibility| at_option(recipe, incompatibility)));
    for (index, stage) in recipe.stages.iter().enumerate() {
        if let StageRecipe::Lora(lora) = stage {
            all.extend(targets(index, &lora.lora.on, spec));
        }
        let StageRecipe::AttentionTransfer(transfer) = stage else { continue };
        let unlike = replaced.iter().find_map(|&layer| outline.mixer(layer).without_weights());
        if let Some(what) = unlike.filter(|_| transfer.loss.weights > 0.0) {
            all.push((format!("stage.{index}.loss.weights"), what.into(), NO_WEIGHTS.into()));
        }
        if !replaced.is_empty() && outline.learned_tensors().is_empty() {
            let what = format!("`{}` adds nothing that attention transfer could train", recipe.student.mixer);
            all.push((format!("stage.{index}.kind"), what, remedy(recipe)));
        }
    }
    all
}

/// What the recipe's own texts allow and the teacher's longest would not, for people to know.
pub(super) fn beyond(recipe: &Recipe, spec: &Spec, outline: &Student, replaced: &[usize]) -> Vec<String> {
    let incompatibilities = incompatibilities(outline, replaced, spec.context.max(longest(recipe)));
    incompatibilities
        .into_iter()
        .map(|incompatibility| format!("`student.mixer`: {}; {}", incompatibility.what, incompatibility.hint))
        .collect()
}

fn layers(recipe: &Recipe, spec: &Spec, replaced: &[usize]) -> Vec<Refusal> {
    let at = |what: String, hint: &str| vec![("student.keep_softmax".to_string(), what, hint.to_string())];
    let layers = spec.layers;
    match recipe.student.keep_softmax.largest().filter(|&layer| layer >= layers) {
        Some(layer) => at(
            format!("there is no layer {layer}: the teacher has {layers} layers, 0 to {}", layers - 1),
            "name layers of the teacher",
        ),
        None if replaced.is_empty() => {
            at(format!("all {layers} layers keep softmax attention: there is nothing to convert"), "name fewer layers")
        }
        None => vec![],
    }
}

/// Texts longer than the positions that a teacher has learned.
fn positions(recipe: &Recipe, spec: &Spec) -> Vec<Refusal> {
    let Some(most) = spec.positions.map(|learned| learned.tokens()) else { return vec![] };
    let of_stage = |(index, stage): (usize, &StageRecipe)| match stage {
        StageRecipe::Evaluate(evaluate) => evaluate.sequence.map(|n| (format!("stage.{index}.sequence"), n)),
        _ => None,
    };
    let all = std::iter::once(("data.sequence".to_string(), recipe.data.sequence));
    let all = all.chain(recipe.stages.iter().enumerate().filter_map(of_stage));
    let refusal = |(path, tokens): (String, usize)| {
        (path, format!("{tokens} tokens, and this teacher has learned {most} positions"), format!("at most {most}"))
    };
    all.filter(|(_, tokens)| *tokens > most).map(refusal).collect()
}

/// Linear layers that LoRA asks for and that no block has.
fn targets(index: usize, on: &[Target], spec: &Spec) -> Vec<Refusal> {
    let absent = |target: &&Target| (0..spec.layers).all(|layer| spec.linear(layer, **target).is_none());
    let there = Target::ALL.into_iter().filter(|target| !absent(&target)).map(|t| format!("\"{}\"", t.word()));
    let there = there.collect::<Vec<_>>().join(", ");
    let why = if spec.experts.is_some() { ": its experts stay as they are" } else { "" };
    let refusal = |target: &Target| {
        let what = format!("this teacher has no `{}` to adapt{why}", target.word());
        (format!("stage.{index}.lora.on"), what, format!("choose from {there}"))
    };
    on.iter().filter(absent).map(refusal).collect()
}

/// Tokens of the longest text that the recipe reads at once.
fn longest(recipe: &Recipe) -> usize {
    let of_stage = |stage: &StageRecipe| match stage {
        StageRecipe::Evaluate(evaluate) => evaluate.sequence,
        _ => None,
    };
    recipe.stages.iter().filter_map(of_stage).chain([recipe.data.sequence]).max().unwrap_or(0)
}

/// Those of all layers, each once.
fn incompatibilities(outline: &Student, replaced: &[usize], tokens: usize) -> Vec<Incompatibility> {
    let mut all: Vec<Incompatibility> = vec![];
    for incompatibility in replaced.iter().flat_map(|&layer| outline.mixer(layer).incompatibilities(tokens)) {
        if !all.contains(&incompatibility) {
            all.push(incompatibility);
        }
    }
    all
}

/// At the option where the recipe has it, else at the mixer whose default it is.
fn at_option(recipe: &Recipe, incompatibility: Incompatibility) -> Refusal {
    let student = &recipe.student;
    let what = format!("`{}` cannot serve here: {}", student.mixer, incompatibility.what);
    let path = match incompatibility.option.filter(|&option| student.options.contains_key(option)) {
        Some(option) => format!("student.{option}"),
        None => "student.mixer".into(),
    };
    let hint = match incompatibility.option {
        Some(option) => format!("set `student.{option}`: {}", incompatibility.hint),
        None => incompatibility.hint,
    };
    (path, what, hint)
}

fn remedy(recipe: &Recipe) -> String {
    let scaled = recipe.student.options.get("output_scale").is_some_and(|scale| scale == false);
    let scale = if scaled { "set `student.output_scale = true`, or " } else { "" };
    format!("{scale}leave this stage out")
}
