//! Gradients of a loss at the head, layer by layer.
//!
//! Each block is its own small tape between two boundaries. Going down, a block's tape is kept or made again from the
//! block's input, run backward, and dropped: memory is one graph per kept layer, or one graph in all with `recompute`.

use crate::Result;
use crate::model::{Flow, LayerVars, Positions, View};
use crate::ops::{Tape, Var, lm_head};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Gradients by full name.
pub type Gradients = BTreeMap<String, Tensor>;

/// A block's graph: tape, input, what trains, output.
struct Graph {
    tape: Tape,
    input: Var,
    vars: LayerVars,
    output: Var,
}

/// Next-token cross-entropy of `ids` ([batch, T]) times `weight`, and the gradients of the tensors that `trains` names.
pub fn end_to_end(
    view: View,
    ids: &[u32],
    batch: usize,
    weight: f64,
    trains: &dyn Fn(&str) -> bool,
    recompute: bool,
) -> Result<(f64, Gradients)> {
    let layers = view.model.spec.layers;
    let positions = Positions::whole(view.model, batch, ids.len() / batch)?;
    // Below the first layer that trains nothing needs a gradient.
    let first = (0..layers).find(|&l| !view.bind(l, Some(&Tape::new()), trains).leaves.is_empty()).unwrap_or(layers);
    let graph = |layer: usize, x: &Tensor| -> Result<Graph> {
        let tape = Tape::new();
        let input = if layer > first { tape.leaf(x.clone()) } else { Var::constant(x.clone()) };
        let vars = view.bind(layer, Some(&tape), trains);
        let output = view.block(layer, &input, &vars, &positions)?;
        Ok(Graph { tape, input, vars, output })
    };

    let mut x = view.embed(ids, &positions)?;
    let mut inputs = vec![];
    let mut kept = vec![];
    for layer in 0..layers {
        if layer < first || recompute {
            let vars = view.bind(layer, None, |_| false);
            let output = view.block(layer, &Var::constant(x.clone()), &vars, &positions)?.value().clone();
            inputs.push(std::mem::replace(&mut x, output));
        } else {
            let g = graph(layer, &x)?;
            x = g.output.value().clone();
            kept.push(g);
        }
    }

    let tape = Tape::new();
    let top = tape.leaf(x);
    let targets = lm_head::next_tokens(ids, ids.len() / batch);
    let loss = lm_head::cross_entropy(&view.final_norm(&top)?, &view.model.head, &targets)?;
    let value = f64::from(loss.scalar()?) * weight;
    let seed = Tensor::new(weight as f32, loss.value().device())?;
    let mut up = tape.backward(vec![(&loss, seed)])?.take(&top);

    let mut gradients = Gradients::new();
    for layer in (first..layers).rev() {
        let Graph { tape, input, vars, output } = match kept.pop() {
            Some(graph) => graph,
            None => graph(layer, &inputs[layer])?,
        };
        let Some(seed) = up.take() else { break };
        let mut grads = tape.backward(vec![(&output, seed)])?;
        for (name, leaf) in &vars.leaves {
            if let Some(g) = grads.take(leaf) {
                gradients.insert(name.clone(), g);
            }
        }
        up = grads.take(&input);
    }
    Ok((value, gradients))
}

/// The same loss without gradients.
pub fn loss_only(view: View, ids: &[u32], batch: usize) -> Result<f64> {
    let hidden = Var::constant(view.hidden(ids, batch)?);
    let targets = lm_head::next_tokens(ids, ids.len() / batch);
    Ok(f64::from(lm_head::cross_entropy(&hidden, &view.model.head, &targets)?.scalar()?))
}

/// The first layer whose mixer's output is not finite on `ids`, for the message.
pub fn non_finite_layer(view: View, ids: &[u32], batch: usize) -> Result<Option<usize>> {
    let mut found = None;
    view.run(ids, batch, &mut |hook| {
        let finite = crate::ops::statistics::square_sum(hook.output.value())?.is_finite();
        if !finite {
            found = Some(hook.layer);
        }
        Ok(if finite { Flow::Continue } else { Flow::Stop })
    })?;
    Ok(found)
}
