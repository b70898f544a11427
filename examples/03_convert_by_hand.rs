//! Page 3: a conversion by hand.
//!
//!     cargo run --release --example 03_convert_by_hand
//!
//! What `subquad convert` does, without recipe and run folder: every layer learns the attention that it loses, then the
//! whole model recovers with low-rank updates. The teacher has 260 thousand parameters and tells stories for children.

use subquad::arch::{FORMAT, Spec};
use subquad::checkpoint::{Checkpoint, Location};
use subquad::mixer::{Branches, Combine, Window};
use subquad::model::{Adapter, Conversion, Model, Sampler, Session, Student, Target, View};
use subquad::stage::{LoraObjective, TransferObjective};
use subquad::text::{Tokenizer, Windows, documents, tokenize};
use subquad::train::{AdamW, Group, Objective, Optimizer, loss_only};
use subquad::{Error, Result};

const TEACHER: &str = "builtin:stories260K";
const SEQUENCE: usize = 128;
const BATCH: usize = 8;

/// A text as windows of [`SEQUENCE`] tokens.
fn windows(location: &str, tokenizer: &Tokenizer, tokens: usize) -> Result<Windows> {
    let documents = documents(&Location::resolve(location, None)?)?;
    Windows::new(tokenize(&documents, tokenizer, Some(tokens), &mut |_| ())?, SEQUENCE, location)
}

/// Perplexity of the next token.
fn perplexity(view: View, text: &Windows) -> Result<f64> {
    let losses = (0..text.len()).map(|i| loss_only(view, text.get(i), 1));
    Ok((losses.sum::<Result<f64>>()? / text.len() as f64).exp())
}

/// The loop of every training stage: an objective gives loss and gradients, AdamW moves the tensors of the groups.
fn train(student: &mut Student, objective: &dyn Objective, groups: Vec<Group>, lr: f64, text: &Windows) -> Result<()> {
    const STEPS: u64 = 100;
    let settings = Optimizer { lr, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip: None };
    let mut optimizer = AdamW::new(settings, groups);
    for step in 0..STEPS {
        // The windows of a step depend on seed and step alone: that is what makes a run repeatable.
        let (loss, gradients) = objective.gradients(student, &text.batch(0, step, BATCH), BATCH)?;
        // Down to a tenth of the rate, in a straight line.
        let rate = lr * (1.0 - 0.9 * step as f64 / STEPS as f64);
        let failed = |failure| Error::Internal(format!("{failure:?}"));
        optimizer.update(&mut student.tensors, &gradients, rate).map_err(failed)?;
        if step % 20 == 0 || step + 1 == STEPS {
            println!("  step {:>3}   loss {loss:.4}", step + 1);
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let checkpoint = Checkpoint::open(&Location::resolve(TEACHER, None)?)?;
    let spec = Spec::of(&checkpoint)?;
    let mut model = Model::load(&checkpoint, &spec)?;
    let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied())?;
    let text = windows("builtin:tinystories", &tokenizer, 150_000)?;
    let unseen = windows("builtin:tinystories-valid", &tokenizer, 16_000)?;
    println!("teacher: perplexity {:.3}", perplexity(View::teacher(&model), &unseen)?);

    // The student is the teacher's weights, shared, and a few tensors of its own for each layer.
    let conversion = Conversion {
        format: FORMAT,
        teacher_model_type: "llama".into(),
        teacher: TEACHER.into(),
        mixer: "hedgehog".into(),
        options: Default::default(),
        window: Some(Window { size: 16, sinks: 0, combine: Combine::Joint }),
        softmax_layers: vec![],
        trained_sequence: Some(text.sequence()),
    };
    let mut student = Student::new(conversion, &spec, 0)?;
    let new: usize = student.tensors.values().map(|t| t.elem_count()).sum();
    println!("student: {new} new parameters beside {}", spec.parameters());
    println!("  untrained: perplexity {:.3}\n", perplexity(View::student(&model, &student), &unseen)?);

    // Stage 1. One pass of the teacher shows each layer its inputs and the output to reach; no gradient crosses layers.
    println!("attention transfer");
    let groups = TransferObjective::trained(&student, 0.0);
    let objective = TransferObjective { model: &model, output: 1000.0, weights: 0.0 };
    train(&mut student, &objective, groups, 1e-2, &text)?;
    println!("  perplexity {:.3}\n", perplexity(View::student(&model, &student), &unseen)?);

    // Stage 2. Next-token labels from end to end, through W + (alpha / rank) B A; everything else is frozen.
    println!("LoRA");
    let adapter = Adapter { rank: 8, alpha: 16.0, targets: vec![Target::Q, Target::K, Target::V, Target::O] };
    let groups = LoraObjective::trained(&student, &model, &adapter, false, 0.0);
    student.adapt(adapter, &spec, 0)?;
    let objective = LoraObjective::new(&model, 1.0, false, &groups);
    train(&mut student, &objective, groups, 1e-3, &text)?;

    // The control that every honest report needs: the same student with its linear branch switched off.
    let view = View::student(&model, &student);
    println!("  perplexity {:.3}", perplexity(view, &unseen)?);
    println!("  window only: perplexity {:.3}\n", perplexity(view.with(Branches::WindowOnly), &unseen)?);

    // Merge: the low-rank updates become part of the weights, and what is left is one model that can be written down.
    student.merge(&mut model)?;
    let mut session = Session::new(View::student(&model, &student));
    let mut sampler = Sampler::new(0.7, 0.9, 1);
    let mut story =
        tokenizer.encode("Once upon a time, there was a little dog who lived in a big house near the sea. One day,")?;
    let mut logits = session.feed(&story)?;
    let size = session.state_bytes();
    while story.len() < 200 && !spec.eos.contains(&story[story.len() - 1]) {
        story.push(sampler.next(&logits)?);
        logits = session.feed(&story[story.len() - 1..])?;
    }
    println!("{}\n", tokenizer.decode(&story)?);
    println!("Bytes of state after the prompt: {size}; after {} tokens: {}.", story.len(), session.state_bytes());
    Ok(())
}
