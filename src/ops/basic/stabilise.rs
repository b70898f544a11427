//! The stabiliser of an exponential input gate (xLSTM, arXiv 2405.04517): a running maximum m that keeps e^i in range.
//!
//! ```text
//! m_t = max(lf_t + m_{t-1}, i_t)      g_t = lf_t + m_{t-1} - m_t <= 0      w_t = e^(i_t - m_t) <= 1
//! ```
//!
//! with lf the log forget gate. A recurrence with decay g and writes weighed by w carries e^(-m) times the state that
//! one with decay lf and weights e^i would carry. Sequential, one number per token and state; in f64 inside a call.

use crate::Result;
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of};
use crate::ops::documents::Documents;
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// What [`stabilise`] returns; zero at padding.
pub struct Stabilised {
    /// g, [B, T, N, 1].
    pub gate: Var,
    /// w, [B, T, N, 1].
    pub weight: Var,
    /// m, [B, T, N, 1].
    pub maximum: Var,
    /// m after the last token, [B, N].
    pub last: Var,
}

/// `forget` (log gates <= 0) and `input` [B, T, N, 1], and the maximum before, `before` [B, N] (zero at the start of a
/// document). The gradient of a maximum goes to the larger argument, to `forget` if they are equal.
pub fn stabilise(forget: &Var, input: &Var, before: &Var, documents: &Arc<Documents>) -> Result<Stabilised> {
    let (batch, tokens, states, width) = forget.value().dims4()?;
    let fits = width == 1
        && input.value().dims() == forget.value().dims()
        && before.value().dims() == [batch, states]
        && (documents.batch(), documents.tokens()) == (batch, tokens);
    if !fits {
        let shapes = [forget, input, before].map(|x| x.value().dims().to_vec());
        return misfit(format!("stabiliser of {shapes:?}, {documents:?}"));
    }
    let vars = apply(Stabiliser(Arc::clone(documents)), &[forget, input, before])?;
    let [gate, weight, maximum, last] = vars.try_into().ok().expect("four outputs");
    Ok(Stabilised { gate, weight, maximum, last })
}

struct Stabiliser(Arc<Documents>);

impl Operator for Stabiliser {
    /// w.
    type Kept = Tensor;
    const F32_FROM: usize = 2;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        by_formula(inputs, &self.0)
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let outputs = forward(inputs, &self.0)?;
        let weight = outputs[1].clone();
        Ok((outputs, weight))
    }

    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        weight: Tensor,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        gradients_of(backward(inputs, &weight, &self.0, up)?, wanted)
    }
}

/// Tokens with `f` of (token, the documents of its row), [B, T, 1] of 0 and 1.
fn mask(documents: &Documents, x: &Tensor, f: impl Fn(usize, &[Range<usize>]) -> bool) -> Result<Tensor> {
    let (batch, tokens, states) = x.dims3()?;
    let of_row = |row: usize| documents.row(row);
    let all = (0..batch).flat_map(|row| (0..tokens).map(move |t| (row, t)));
    let all: Vec<u8> = all.map(|(row, t)| u8::from(f(t, of_row(row)))).collect();
    Ok(Tensor::from_vec(all, (batch, tokens, 1), x.device())?.broadcast_as((batch, tokens, states))?.contiguous()?)
}

/// max(x, y), whose gradient goes to x where they are equal.
fn larger(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.ge(y)?.where_cond(x, y)?)
}

/// Every token is a map m -> max(m + a, b); a run of tokens is such a map too, so that the maps from the first token to
/// each come from log2(T) rounds in which runs of twice the length are put together. No sum of gates is ever subtracted.
fn by_formula(x: &[Tensor], documents: &Documents) -> Result<Vec<Tensor>> {
    let dtype = x[0].dtype();
    let [forget, input, before] = [x[0].squeeze(3)?, x[1].squeeze(3)?, x[2].clone()].map(|x| formulas::wide(&x));
    let (forget, input, before) = (forget?, input?, before?);
    let (tokens, infinity) = (forget.dim(1)?, f64::NEG_INFINITY);
    let padding = mask(documents, &forget, |t, row| !row.iter().any(|d| d.contains(&t)))?;
    let starts = mask(documents, &forget, |t, row| row.iter().skip(1).any(|d| d.start == t && !d.is_empty()))?;
    let (forget, input) = (formulas::replace(&forget, &padding, 0.0)?, formulas::replace(&input, &padding, 0.0)?);
    // Padding leaves m as it is; the first token of a later document finds 0, whatever there was.
    let mut a = formulas::replace(&forget, &starts, infinity)?;
    let mut b = formulas::replace(&starts.where_cond(&larger(&forget, &input)?, &input)?, &padding, infinity)?;
    let mut run = 1;
    while run < tokens {
        let earlier = |x: &Tensor, fill: f64| {
            let first = x.narrow(1, 0, run)?.zeros_like()?.affine(1.0, fill)?;
            Tensor::cat(&[&first, &x.narrow(1, 0, tokens - run)?], 1)
        };
        b = larger(&(earlier(&b, infinity)? + &a)?, &b)?;
        a = (earlier(&a, 0.0)? + &a)?;
        run *= 2;
    }
    let before = before.unsqueeze(1)?;
    let after = larger(&a.broadcast_add(&before)?, &b)?;
    let previous = Tensor::cat(&[&before, &after], 1)?;
    let last = previous.narrow(1, tokens, 1)?.squeeze(1)?;
    let previous = formulas::replace(&previous.narrow(1, 0, tokens)?.contiguous()?, &starts, 0.0)?;
    let kept = (forget + previous)?;
    let maximum = larger(&kept, &input)?;
    let outputs = [(kept - &maximum)?, (input - &maximum)?.exp()?, maximum];
    let outputs = outputs.iter().map(|y| Ok(formulas::replace(y, &padding, 0.0)?.unsqueeze(3)?.to_dtype(dtype)?));
    outputs.chain([Ok(last.to_dtype(dtype)?)]).collect()
}

/// Runs through the tokens of one state in order: document, token, `forget`, `input`, maximum before and after.
fn walk(
    (b, n): (usize, usize),
    (forget, input): (&HeadsView, &HeadsView),
    before: f32,
    documents: &Documents,
    mut visit: impl FnMut(usize, usize, f64, f64, f64),
) -> f64 {
    let mut m = f64::from(before);
    for (d, document) in documents.row(b).iter().enumerate() {
        if d > 0 {
            m = 0.0;
        }
        let (forget, input) = (forget.head(b, n, document.clone()), input.head(b, n, document.clone()));
        for (i, t) in document.clone().enumerate() {
            let kept = f64::from(forget.row(i)[0]) + m;
            let entering = f64::from(input.row(i)[0]);
            m = kept.max(entering);
            visit(d, t, kept, entering, m);
        }
    }
    m
}

fn forward(x: &[Tensor], documents: &Documents) -> Result<Vec<Tensor>> {
    let (forget, input, before) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, Slice::of(&x[2])?);
    let (states, tokens) = (forget.heads, forget.tokens);
    let [mut gate, mut weight, mut maximum] = [0; 3].map(|_| Output::padded(x[0].dims(), documents));
    let mut last = Output::unwritten(x[2].dims());
    for (row, &before) in before.iter().enumerate() {
        let (b, n) = (row / states, row % states);
        let end = walk((b, n), (&forget, &input), before, documents, |_, t, kept, entering, m| {
            let at = (b * tokens + t) * states + n;
            gate.data()[at] = (kept - m) as f32;
            weight.data()[at] = (entering - m).exp() as f32;
            maximum.data()[at] = m as f32;
        });
        last.data()[row] = end as f32;
    }
    [gate, weight, maximum, last].into_iter().map(Output::tensor).collect()
}

/// With M_t the whole gradient of m_t, backward over tokens: M_t = dm_t - dg_t - w_t dw_t + (what t + 1 passes on), of
/// which the larger argument takes all; lf_t and m_{t-1} also take dg_t, i_t takes w_t dw_t.
fn backward(x: &[Tensor], weight: &Tensor, documents: &Documents, up: &[Tensor]) -> Result<Vec<Output>> {
    let (forget, input, before) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, Slice::of(&x[2])?);
    let (states, tokens) = (forget.heads, forget.tokens);
    let (dg, dw, dm, d_last) = (Slice::of(&up[0])?, Slice::of(&up[1])?, Slice::of(&up[2])?, Slice::of(&up[3])?);
    let weight = Slice::of(weight)?;
    let [mut d_forget, mut d_input, mut d_before] = [0, 1, 2].map(|i| Output::zeros(x[i].dims()));
    let mut steps = vec![];
    for (row, &before) in before.iter().enumerate() {
        let (b, n) = (row / states, row % states);
        steps.clear();
        walk((b, n), (&forget, &input), before, documents, |document, t, kept, entering, _| {
            steps.push((document, (b * tokens + t) * states + n, kept >= entering));
        });
        let mut carried = f64::from(d_last[row]);
        let mut later = steps.last().map_or(0, |s| s.0);
        for &(document, at, keeps) in steps.iter().rev() {
            if document != later {
                (later, carried) = (document, 0.0);
            }
            let (dg, entered) = (f64::from(dg[at]), f64::from(weight[at]) * f64::from(dw[at]));
            let total = f64::from(dm[at]) - dg - entered + carried;
            let (kept, won) = if keeps { (total, 0.0) } else { (0.0, total) };
            carried = dg + kept;
            d_forget.data()[at] = carried as f32;
            d_input.data()[at] = (entered + won) as f32;
        }
        // Without a document nothing stands between the maximum before and after; the first one begins from it.
        d_before.data()[row] = if later == 0 { carried as f32 } else { 0.0 };
    }
    Ok(vec![d_forget, d_input, d_before])
}
