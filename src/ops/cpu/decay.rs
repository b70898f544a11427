//! Decay inside a chunk of one head: products of rows with rows, weighed by what the gates let through.
//!
//! With G_i the inclusive cumulative sum of the log gates g <= 0 inside the chunk (none, one per token, or one per token
//! and key channel) the chunked forms of every gated recurrence are made of
//!
//! ```text
//! A_ij = sum_d x_id y_jd e^(G_id - G_jd)      x_i e^(G_i)      y_j e^(G_C - G_j)
//! ```
//!
//! All exponents are <= 0 where they count. With a gate per channel A is not a product of x e^G and y e^-G, since e^-G
//! overflows: the chunk is halved until a block's gates span at most `SPAN`, such a block is one product around its
//! middle, and what lies below the diagonal between two halves is one product around the border, where both exponents
//! are <= 0 whatever the gates. (The two-level scheme of GLA, arXiv 2312.06635, with levels only where gates need them.)

pub mod values;

use super::matrix::{Mat, MatMut, Triangle};
use super::simd::{axpy, dot, exp, simd};
use std::ops::Range;

/// Largest span of cumulated log gates in a block that is computed as one product: e^SPAN times a product of inputs
/// must stay finite above the diagonal, where it is masked afterwards.
const SPAN: f64 = 60.0;
/// e^FLOOR is 0 in f32. Gates below it are cut so that they do not cost the others their precision.
const FLOOR: f32 = -104.0;

/// What token i reads of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Writes up to its own: j <= i, factor e^(G_i - G_j). Linear attention's output.
    After,
    /// Earlier writes, its own decay applied: j < i, factor e^(G_i - G_j). What the delta rule corrects.
    Decayed,
    /// Earlier writes as they stood: j < i, factor e^(G_(i-1) - G_j). Bonus terms, diagonal-plus-low-rank transitions.
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Scalar,
    Vector,
}

/// A block of A that is one product: rows times columns, around a common reference.
struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Where its factors e^(G_i - n) of the rows and e^(n - G_j) of the columns begin.
    factors: usize,
}

impl Block {
    /// On the diagonal, so entries above it are to be masked.
    fn diagonal(&self) -> bool {
        self.rows == self.columns
    }
}

/// The gates of one chunk of one head, prepared; also the buffers of its products. Kept by a thread between chunks.
pub struct Decay {
    kind: Kind,
    tokens: usize,
    /// Channels of the gate: 0, 1, or K.
    width: usize,
    /// G, [C, width].
    cumulative: Vec<f64>,
    /// e^G and e^(G_C - G), [C, width].
    start: Vec<f32>,
    end: Vec<f32>,
    /// e^(G_i - G_j) for j <= i, [C, C], of a scalar gate.
    gamma: Vec<f32>,
    blocks: Vec<Block>,
    factors: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    product: Vec<f32>,
}

impl Default for Decay {
    fn default() -> Self {
        let none = Vec::new;
        Decay {
            kind: Kind::None,
            tokens: 0,
            width: 0,
            cumulative: vec![],
            start: none(),
            end: none(),
            gamma: none(),
            blocks: vec![],
            factors: none(),
            x: none(),
            y: none(),
            product: none(),
        }
    }
}

impl Decay {
    /// Takes in the log gates of a chunk, [C, 1] (one per token) or [C, K], or none for `tokens` ungated tokens.
    pub fn prepare(&mut self, gates: Option<Mat>, tokens: usize) {
        self.tokens = tokens;
        let Some(gates) = gates else {
            (self.kind, self.width) = (Kind::None, 0);
            return;
        };
        assert_eq!(gates.rows, tokens);
        self.width = gates.cols;
        self.kind = if gates.cols == 1 { Kind::Scalar } else { Kind::Vector };
        let (n, w) = (tokens, gates.cols);
        self.cumulative.resize(n * w, 0.0);
        self.start.resize(n * w, 0.0);
        self.end.resize(n * w, 0.0);
        simd!(|| {
            let (first, rest) = self.cumulative.split_at_mut(w);
            first.iter_mut().zip(gates.row(0)).for_each(|(g, gate)| *g = f64::from(gate.max(FLOOR)));
            let mut before = &*first;
            for (i, now) in rest.chunks_exact_mut(w).enumerate() {
                for ((now, before), gate) in now.iter_mut().zip(before).zip(gates.row(i + 1)) {
                    *now = before + f64::from(gate.max(FLOOR));
                }
                before = now;
            }
        });
        match self.kind {
            Kind::Scalar => self.prepare_gamma(),
            _ => self.prepare_blocks(),
        }
        self.prepare_borders();
    }

    /// From G to e^G and e^(G_C - G). A block that is the whole chunk has exponentials enough: e^(G - n) e^n.
    fn prepare_borders(&mut self) {
        let (n, w) = (self.tokens, self.width);
        let (all, last) = (&self.cumulative[..n * w], &self.cumulative[(n - 1) * w..n * w]);
        if self.kind == Kind::Vector && self.blocks.len() == 1 {
            let references = all[..w].iter().zip(last).map(|(first, last)| (0.5 * (first + last), *last));
            let (before, after): (Vec<f32>, Vec<f32>) =
                references.map(|(n, last)| (exp(n as f32), exp((last - n) as f32))).unzip();
            let (ups, downs) = self.factors.split_at(n * w);
            simd!(|| {
                let rows = self.start.chunks_exact_mut(w).zip(self.end.chunks_exact_mut(w));
                for ((start, end), (up, down)) in rows.zip(ups.chunks_exact(w).zip(downs.chunks_exact(w))) {
                    start.iter_mut().zip(up).zip(&before).for_each(|((s, f), n)| *s = f * n);
                    end.iter_mut().zip(down).zip(&after).for_each(|((e, f), n)| *e = f * n);
                }
            });
            return;
        }
        simd!(|| {
            let rows = self.start.chunks_exact_mut(w).zip(self.end.chunks_exact_mut(w));
            for ((start, end), g) in rows.zip(all.chunks_exact(w)) {
                for (start, g) in start.iter_mut().zip(g) {
                    *start = exp(*g as f32);
                }
                for ((end, g), last) in end.iter_mut().zip(g).zip(last) {
                    *end = exp((last - g) as f32);
                }
            }
        });
    }

    fn prepare_gamma(&mut self) {
        let n = self.tokens;
        self.gamma.resize(n * n, 0.0);
        simd!(|| {
            for (i, row) in self.gamma.chunks_exact_mut(n).enumerate() {
                let g = self.cumulative[i];
                for (x, other) in row[..=i].iter_mut().zip(&self.cumulative) {
                    *x = exp((g - other) as f32);
                }
                row[i + 1..].fill(0.0);
            }
        });
    }

    fn prepare_blocks(&mut self) {
        self.blocks.clear();
        self.factors.clear();
        let mut open: Vec<_> = std::iter::once(0..self.tokens).collect();
        while let Some(part) = open.pop() {
            let w = self.width;
            let (first, last) = (&self.cumulative[part.start * w..][..w], &self.cumulative[(part.end - 1) * w..][..w]);
            let span = first.iter().zip(last).map(|(a, b)| a - b).fold(0.0, f64::max);
            let factors = self.factors.len();
            if part.len() == 1 || span <= SPAN {
                let reference: Vec<f64> = first.iter().zip(last).map(|(a, b)| 0.5 * (a + b)).collect();
                self.push_factors(&part, &reference, 1.0);
                self.push_factors(&part, &reference, -1.0);
                self.blocks.push(Block { rows: part.clone(), columns: part, factors });
            } else {
                let middle = part.start + part.len() / 2;
                let reference = self.cumulative[(middle - 1) * w..][..w].to_vec();
                let (upper, lower) = (part.start..middle, middle..part.end);
                self.push_factors(&lower, &reference, 1.0);
                self.push_factors(&upper, &reference, -1.0);
                self.blocks.push(Block { rows: lower.clone(), columns: upper.clone(), factors });
                open.extend([upper, lower]);
            }
        }
    }

    /// e^(sign (G_i - reference)) of some rows.
    fn push_factors(&mut self, rows: &Range<usize>, reference: &[f64], sign: f64) {
        let w = self.width;
        let at = self.factors.len();
        self.factors.resize(at + rows.len() * w, 0.0);
        simd!(|| {
            let rows = self.cumulative[rows.start * w..rows.end * w].chunks_exact(w);
            for (out, g) in self.factors[at..].chunks_exact_mut(w).zip(rows) {
                for ((out, g), reference) in out.iter_mut().zip(g).zip(reference) {
                    *out = exp((sign * (g - reference)) as f32);
                }
            }
        });
    }

    /// A of `x` and `y` [C, K] into a buffer [C, C].
    pub fn product(&mut self, read: Read, x: Mat, y: Mat, buffer: &mut Vec<f32>) {
        buffer.resize(self.tokens * self.tokens, 0.0);
        self.product_into(read, x, y, buffer);
    }

    /// A of `x` and `y` [C, K] into `out` [C, C], zero where nothing is read.
    pub fn product_into(&mut self, read: Read, x: Mat, y: Mat, out: &mut [f32]) {
        let n = self.tokens;
        match self.kind {
            Kind::None | Kind::Scalar => {
                MatMut::new(out, n, n).product_in(Triangle::Output, 1.0, x, y.t(), 0.0);
                self.weigh(read, out);
            }
            Kind::Vector => {
                if self.blocks.len() > 1 {
                    out.fill(0.0);
                }
                for i in 0..self.blocks.len() {
                    self.scaled(i, read, x, y);
                    let Block { rows, columns, .. } = &self.blocks[i];
                    let (xs, ys) = (Mat::new(&self.x, rows.len(), x.cols), Mat::new(&self.y, columns.len(), y.cols));
                    let mut out = MatMut::new(out, n, n);
                    let triangle = if self.blocks[i].diagonal() { Triangle::Output } else { Triangle::None };
                    out.block(rows.clone(), columns.clone()).product_in(triangle, 1.0, xs, ys.t(), 0.0);
                    if self.blocks[i].diagonal() {
                        mask(read, out.block(rows.clone(), columns.clone()));
                    }
                }
            }
        }
    }

    /// Adds to `dx` and `dy` [C, K] what the gradient `d` [C, C] of [`Decay::product`] gives; `d` is overwritten.
    pub fn product_backward(&mut self, read: Read, d: &mut [f32], x: Mat, y: Mat, dx: &mut [f32], dy: &mut [f32]) {
        let n = self.tokens;
        match self.kind {
            Kind::None | Kind::Scalar => {
                self.weigh(read, d);
                let d = Mat::new(d, n, n);
                MatMut::new(dx, n, x.cols).product_in(Triangle::Left, 1.0, d, y, 1.0);
                MatMut::new(dy, n, y.cols).product_in(Triangle::LeftTransposed, 1.0, d.t(), x, 1.0);
            }
            Kind::Vector => {
                let w = self.width;
                for i in 0..self.blocks.len() {
                    self.scaled(i, read, x, y);
                    let Block { rows, columns, factors } = &self.blocks[i];
                    let mut d = MatMut::new(d, n, n);
                    let (mut left, mut turned) = (Triangle::None, Triangle::None);
                    if self.blocks[i].diagonal() {
                        mask(read, d.block(rows.clone(), columns.clone()));
                        (left, turned) = (Triangle::Left, Triangle::LeftTransposed);
                    }
                    let d = d.as_mat().block(rows.clone(), columns.clone());
                    let (xs, ys) = (Mat::new(&self.x, rows.len(), w), Mat::new(&self.y, columns.len(), w));
                    let (row_factors, rest) = self.factors[*factors..].split_at(rows.len() * w);
                    self.product.resize(rows.len().max(columns.len()) * w, 0.0);
                    let product = &mut self.product[..rows.len() * w];
                    MatMut::new(product, rows.len(), w).product_in(left, 1.0, d, ys, 0.0);
                    simd!(|| {
                        for (i, (r, product)) in rows.clone().zip(product.chunks_exact(w).enumerate()) {
                            let dx = &mut dx[i * w..][..w];
                            match row_factor(read, row_factors, r, w, rows == columns) {
                                Some(Some(f)) => dx.iter_mut().zip(product).zip(f).for_each(|((d, p), f)| *d += p * f),
                                Some(None) => axpy(dx, 1.0, product),
                                None => {}
                            }
                        }
                    });
                    let product = &mut self.product[..columns.len() * w];
                    MatMut::new(product, columns.len(), w).product_in(turned, 1.0, d.t(), xs, 0.0);
                    let dy = &mut dy[columns.start * w..columns.end * w];
                    simd!(|| dy.iter_mut().zip(&*product).zip(rest).for_each(|((dy, p), f)| *dy += p * f),);
                }
            }
        }
    }

    /// Rows and columns of a block with their factors, into the buffers `x` and `y`.
    fn scaled(&mut self, block: usize, read: Read, x: Mat, y: Mat) {
        let Block { rows, columns, factors } = &self.blocks[block];
        let w = self.width;
        let (row_factors, column_factors) = self.factors[*factors..].split_at(rows.len() * w);
        self.x.resize(rows.len() * w, 0.0);
        self.y.resize(columns.len() * w, 0.0);
        simd!(|| {
            for ((r, i), out) in rows.clone().enumerate().zip(self.x.chunks_exact_mut(w)) {
                match row_factor(read, row_factors, r, w, rows == columns) {
                    Some(Some(factor)) => out.iter_mut().zip(x.row(i)).zip(factor).for_each(|((o, x), f)| *o = x * f),
                    Some(None) => out.copy_from_slice(x.row(i)),
                    None => out.fill(0.0),
                }
            }
            for ((j, out), factor) in
                columns.clone().zip(self.y.chunks_exact_mut(w)).zip(column_factors.chunks_exact(w))
            {
                out.iter_mut().zip(y.row(j)).zip(factor).for_each(|((o, y), f)| *o = y * f);
            }
        });
    }

    /// Masks a [C, C] matrix and weighs it by a scalar gate's decay.
    fn weigh(&self, read: Read, a: &mut [f32]) {
        let n = self.tokens;
        simd!(|| {
            for (i, row) in a.chunks_exact_mut(n).enumerate() {
                let seen = i + usize::from(read == Read::After);
                row[seen..].fill(0.0);
                if self.kind == Kind::Scalar && seen > 0 {
                    let from = if read == Read::Before { i - 1 } else { i };
                    row[..seen].iter_mut().zip(&self.gamma[from * n..]).for_each(|(a, f)| *a *= f);
                }
            }
        });
    }

    /// x_i e^(G_i), of tokens that read the state before the chunk; `x` itself where there is no gate.
    pub fn from_start<'a>(&self, read: Read, x: Mat<'a>, buffer: &'a mut Vec<f32>) -> Mat<'a> {
        if self.kind == Kind::None {
            return x;
        }
        buffer.resize(x.rows * x.cols, 0.0);
        // As in `scale_start`: before its own decay a token stands where the one before it stood.
        let skip = usize::from(read == Read::Before);
        buffer[..skip * x.cols].copy_from_slice(&x.row(0)[..skip * x.cols]);
        self.scaled_rows(skip, x, &self.start, buffer);
        Mat::new(buffer, x.rows, x.cols)
    }

    /// y_j e^(G_C - G_j), of what is written into the state after the chunk; `y` itself where there is no gate.
    pub fn to_end<'a>(&self, y: Mat<'a>, buffer: &'a mut Vec<f32>) -> Mat<'a> {
        if self.kind == Kind::None {
            return y;
        }
        buffer.resize(y.rows * y.cols, 0.0);
        self.scaled_rows(0, y, &self.end, buffer);
        Mat::new(buffer, y.rows, y.cols)
    }

    /// Rows of x from `skip` on, times the factors from the first on.
    fn scaled_rows(&self, skip: usize, x: Mat, factors: &[f32], out: &mut [f32]) {
        simd!(|| {
            let rows = out.chunks_exact_mut(x.cols).enumerate().skip(skip);
            for ((i, out), factors) in rows.zip(factors.chunks_exact(self.width)) {
                match self.kind {
                    Kind::Scalar => out.iter_mut().zip(x.row(i)).for_each(|(o, x)| *o = x * factors[0]),
                    _ => out.iter_mut().zip(x.row(i)).zip(factors).for_each(|((o, x), f)| *o = x * f),
                }
            }
        });
    }

    /// d_i e^(G_i) in place, [C, width]: also the gradient of [`Decay::from_start`].
    pub fn scale_start(&self, read: Read, d: &mut [f32], width: usize) {
        if self.kind == Kind::None {
            return;
        }
        // Before its own decay a token stands where the one before it stood; the first stands at the border.
        let skip = usize::from(read == Read::Before) * width;
        self.scale(&mut d[skip..], &self.start, width);
    }

    /// d_j e^(G_C - G_j) in place, [C, width]: also the gradient of [`Decay::to_end`].
    pub fn scale_end(&self, d: &mut [f32], width: usize) {
        if self.kind != Kind::None {
            self.scale(d, &self.end, width);
        }
    }

    fn scale(&self, d: &mut [f32], factors: &[f32], width: usize) {
        simd!(|| match self.kind {
            Kind::Scalar => {
                for (row, f) in d.chunks_exact_mut(width).zip(factors) {
                    row.iter_mut().for_each(|d| *d *= f);
                }
            }
            _ => d.iter_mut().zip(factors).for_each(|(d, f)| *d *= f),
        });
    }

    /// e^(G_C) S: what the chunk leaves of the state [K, value width] before it.
    pub fn decay_state(&self, state: &mut [f32], value_width: usize) {
        let last = match self.kind {
            Kind::None => return,
            _ => &self.start[(self.tokens - 1) * self.width..][..self.width],
        };
        simd!(|| match self.kind {
            Kind::Scalar => state.iter_mut().for_each(|s| *s *= last[0]),
            _ => {
                for (row, f) in state.chunks_exact_mut(value_width).zip(last) {
                    row.iter_mut().for_each(|s| *s *= f);
                }
            }
        });
    }

    /// Adds sign x_i dx_i (per channel, or summed for a scalar gate) to `terms` [C, width]: with dx the whole gradient
    /// of x through this decay, the gradient of G_i.
    pub fn gate_terms(&self, terms: &mut [f32], sign: f32, x: Mat, dx: Mat) {
        simd!(|| match self.kind {
            Kind::None => {}
            Kind::Scalar => {
                for (i, term) in terms.iter_mut().enumerate() {
                    *term += sign * dot(x.row(i), dx.row(i));
                }
            }
            Kind::Vector => {
                for (i, terms) in terms.chunks_exact_mut(self.width).enumerate() {
                    terms.iter_mut().zip(x.row(i)).zip(dx.row(i)).for_each(|((t, x), dx)| *t += sign * x * dx);
                }
            }
        });
    }
}

/// The factors of a block's row r: those of its own token, or for [`Read::Before`] of the token before, which stands
/// at the reference (`Some(None)`, factor 1) or reads nothing (`None`) when it lies before the block.
fn row_factor(read: Read, factors: &[f32], r: usize, w: usize, diagonal: bool) -> Option<Option<&[f32]>> {
    match (read, r) {
        (Read::Before, 0) if diagonal => None,
        (Read::Before, 0) => Some(None),
        (Read::Before, _) => Some(Some(&factors[(r - 1) * w..][..w])),
        _ => Some(Some(&factors[r * w..][..w])),
    }
}

/// Zeroes what a block on the diagonal does not read.
fn mask(read: Read, mut block: MatMut) {
    for i in 0..block.rows {
        let seen = i + usize::from(read == Read::After);
        block.row(i)[seen..].fill(0.0);
    }
}

/// From the gradients of G to those of g, backward over chunks: g_t reaches every G_s with s >= t. `running` `[width]`
/// carries the sum over later tokens; `exclusive` (empty: none) holds the terms of tokens that stood before their own
/// decay, which reach only earlier gates.
pub fn gate_gradient(running: &mut [f64], inclusive: &[f32], exclusive: &[f32], mut out: MatMut) {
    let w = running.len();
    simd!(|| {
        for i in (0..out.rows).rev() {
            for ((running, x), out) in running.iter_mut().zip(&inclusive[i * w..]).zip(out.row(i)) {
                *running += f64::from(*x);
                *out = *running as f32;
            }
            if !exclusive.is_empty() {
                running.iter_mut().zip(&exclusive[i * w..]).for_each(|(running, x)| *running += f64::from(*x));
            }
        }
    });
}

/// Rows of S times rows of dS, summed as the gate needs them: the gradient of the last G through the state [K, V].
pub fn state_terms(running: &mut [f64], state: &[f32], gradient: &[f32], value_width: usize) {
    let scalar = running.len() == 1;
    for (k, (s, d)) in state.chunks_exact(value_width).zip(gradient.chunks_exact(value_width)).enumerate() {
        running[if scalar { 0 } else { k }] += f64::from(dot(s, d));
    }
}

/// S += Y^T V.
pub fn write(state: &mut [f32], y: Mat, v: Mat) {
    MatMut::new(state, y.cols, v.cols).product(1.0, y.t(), v, 1.0);
}

/// Writes a [C, width] gradient to rows of a larger one; those that share it add to what the `first` has written.
pub fn put_rows(mut to: MatMut, from: &[f32], first: bool) {
    let width = to.cols;
    simd!(|| {
        for (i, from) in from.chunks_exact(width).enumerate() {
            match first {
                true => to.row(i).copy_from_slice(from),
                false => axpy(to.row(i), 1.0, from),
            }
        }
    });
}
