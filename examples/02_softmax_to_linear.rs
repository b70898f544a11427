//! Page 2: from softmax to a recurrence.
//!
//!     cargo run --release --example 02_softmax_to_linear
//!
//! Softmax attention compares every query with every key. If the weight e^(q.k) were a product phi(q).phi(k), the sum
//! over keys could be kept in a matrix S of fixed size. Here is that recurrence in ten lines, the library's fast forms
//! of it, and how far an untrained phi is from the teacher, layer by layer: what attention transfer has to close.

use candle_core::Tensor;
use subquad::arch::Spec;
use subquad::checkpoint::{Checkpoint, Location};
use subquad::mixer::{self, Branches, Combine, LayerDims, LayerInputs, Mixer, Options, Params, Softmax, State, Window};
use subquad::model::{Flow, Model, View};
use subquad::ops::{Var, paired_softmax::two_softmaxes};
use subquad::text::{Tokenizer, documents, tokenize};
use subquad::{Error, Result};

/// Tokens of the text that we look at.
const TOKENS: usize = 512;

/// One head, token by token: S += phi(k) v^T, z += phi(k), o = phi(q) S / phi(q).z. `q` and `k` are features already.
fn recurrence(q: &[Vec<f32>], k: &[Vec<f32>], v: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut s = vec![vec![0.0; v[0].len()]; k[0].len()];
    let mut z = vec![0.0; k[0].len()];
    let mut outputs = vec![];
    for ((q, k), v) in q.iter().zip(k).zip(v) {
        for (f, k) in k.iter().enumerate() {
            z[f] += k;
            s[f].iter_mut().zip(v).for_each(|(s, v)| *s += k * v);
        }
        let norm: f32 = q.iter().zip(&z).map(|(q, z)| q * z).sum();
        outputs.push((0..v.len()).map(|j| q.iter().zip(&s).map(|(q, s)| q * s[j]).sum::<f32>() / norm).collect());
    }
    outputs
}

/// The mixer `hedgehog` as a recipe would build it, with its tensors at their initial values: identity maps.
fn hedgehog(sizes: LayerDims, window: Option<usize>) -> Result<(Box<dyn Mixer>, Params)> {
    let registration = mixer::find("hedgehog").ok_or_else(|| Error::usage("no mixer `hedgehog`", ""))?;
    let options = Options::new(registration.options, &Default::default())?;
    let window = window.map(|size| Window { size, sinks: 0, combine: Combine::Joint });
    let mixer = (registration.build)(&options, sizes, window)?;
    let mut params = Params::default();
    for new in mixer.tensors() {
        params.0.insert(new.name.into(), new.initial.tensor(new.name, &new.shape, 0)?.into());
    }
    Ok((mixer, params))
}

/// The first head of `[1, T, H, K]`.
fn head(x: &Var) -> Result<Tensor> {
    Ok(x.value().get(0)?.narrow(1, 0, 1)?.squeeze(1)?)
}

/// |x - y| / |y|, in root mean squares.
fn error(x: &Tensor, y: &Tensor) -> Result<f32> {
    let square = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.to_scalar()?) };
    Ok((square(&(x - y)?)? / square(y)?).sqrt())
}

fn main() -> Result<()> {
    // The teacher of page 1, and the start of a book that it has not seen.
    let checkpoint = Checkpoint::open(&Location::resolve("builtin:books-llama-7m", None)?)?;
    let spec = Spec::of(&checkpoint)?;
    let model = Model::load(&checkpoint, &spec)?;
    let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied())?;
    let book = documents(&Location::resolve("builtin:books-valid", None)?)?;
    let ids = tokenize(&book, &tokenizer, Some(TOKENS), &mut |_| ())?;

    // A tap sees every layer of a pass: its q, k, v after RoPE, and what attention made of them. We keep them all.
    let mut layers: Vec<(LayerInputs, Var)> = vec![];
    View::teacher(&model).run(&ids, 1, &mut |hook| {
        let (q, k) = hook.heads.rotated()?;
        layers.push((LayerInputs::new(q.clone(), k.clone(), hook.heads.v.clone())?, hook.output.clone()));
        Ok(Flow::Continue)
    })?;
    let sizes = model.spec.layer_dims(0);

    // 1. Three forms of one function. The plain recurrence above; `mix`, in chunks, for training and prompts; `step`,
    //    one token at a time with a state, for generation.
    let (heads, _) = &layers[0];
    let (mixer, params) = hedgehog(sizes, None)?;
    let mixed = mixer.mix(heads, &params, None, Branches::Both)?;
    let features = (two_softmaxes(&heads.q, params.get("q_map")?)?, two_softmaxes(&heads.k, params.get("k_map")?)?);
    let [q, k, v] = [&features.0, &features.1, &heads.v].map(head);
    let plain = Tensor::new(recurrence(&q?.to_vec2()?, &k?.to_vec2()?, &v?.to_vec2()?), mixed.value().device())?;
    let mut state = State::default();
    let mut steps = vec![];
    for t in 0..TOKENS {
        let token = |x: &Var| -> Result<Var> { Ok(x.value().narrow(1, t, 1)?.contiguous()?.into()) };
        let heads = LayerInputs::new(token(&heads.q)?, token(&heads.k)?, token(&heads.v)?)?;
        steps.push(mixer.step(&heads, &params, &mut state)?);
    }
    println!("Layer 0, {TOKENS} tokens, relative difference of the chunked form");
    println!("  to the plain recurrence  {:.1e}", error(&head(&mixed)?, &plain)?);
    println!("  to token after token     {:.1e}\n", error(mixed.value(), &Tensor::cat(&steps, 1)?)?);

    // 2. It is not the teacher's function yet: phi(x) = [softmax(x), softmax(-x)] is far too blunt, and outweighs the
    //    64 exact keys beside it. Those alone, the linear branch switched off, are near: reports have this control.
    println!("Relative error of each layer's output against softmax attention, nothing trained");
    println!("  layer   linear   linear + window 64   window 64 alone");
    let (joint, joint_bound) = hedgehog(sizes, Some(64))?;
    for (layer, (heads, softmax)) in layers.iter().enumerate() {
        let of = |m: &dyn Mixer, params, on| error(m.mix(heads, params, None, on)?.value(), softmax.value());
        let linear = of(&*mixer, &params, Branches::Both)?;
        let both = of(&*joint, &joint_bound, Branches::Both)?;
        let alone = of(&*joint, &joint_bound, Branches::WindowOnly)?;
        println!("  {layer:>5}   {linear:>6.3}   {both:>18.3}   {alone:>15.3}");
    }

    // 3. What it buys: a state that does not grow.
    println!("\nBytes of state of one layer after so many tokens");
    println!("  {:>9}   {:>11}   {:>18}", "tokens", "softmax", "linear + window 64");
    for context in [64, 1024, 16_384, 262_144] {
        let softmax = Softmax::new(sizes).state_bytes(context);
        println!("  {context:>9}   {softmax:>11}   {:>18}", joint.state_bytes(context));
    }
    Ok(())
}
