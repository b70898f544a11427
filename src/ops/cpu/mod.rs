//! What CPU kernels share: strided matrices, vectorised row functions, and shared output buffers.

pub mod allocator;
pub mod decay;
pub mod matrix;
pub mod simd;
mod small_product;
mod transpose;
pub mod triangular;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use parking_lot::RwLockReadGuard;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ops::documents::Documents;
use crate::{Error, Result};

/// The f32 elements of a contiguous CPU tensor, without a copy.
pub struct Slice<'a> {
    guard: RwLockReadGuard<'a, Storage>,
    start: usize,
    len: usize,
}

impl<'a> Slice<'a> {
    /// Errors (bugs of ours) when the tensor is not contiguous, not f32, or not on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::Internal(format!("tensor {:?} is not contiguous", tensor.shape())));
        };
        match &*guard {
            Storage::Cpu(CpuStorage::F32(_)) => {}
            _ => {
                let what = format!("tensor is {:?} on {:?}; CPU kernels take f32", tensor.dtype(), tensor.device());
                return Err(Error::Internal(what));
            }
        }
        Ok(Slice { guard, start, len: end - start })
    }
}

impl Deref for Slice<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.start + self.len],
            _ => unreachable!("checked when the slice was made"),
        }
    }
}

/// Elements of a `[B, T, H, K]` tensor whose heads lie side by side; batch and token strides are free,
/// so that a narrowed cache is read in place.
pub struct HeadsView<'a> {
    guard: RwLockReadGuard<'a, Storage>,
    start: usize,
    /// Elements between batch rows and between tokens.
    pub batch_stride: usize,
    pub token_stride: usize,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
}

impl<'a> HeadsView<'a> {
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (batch, tokens, heads, width) = tensor.dims4()?;
        let (guard, layout) = tensor.storage_and_layout();
        let stride = layout.stride();
        let dense = (width == 1 || stride[3] == 1) && (heads == 1 || stride[2] == width);
        if !dense || !matches!(&*guard, Storage::Cpu(CpuStorage::F32(_))) {
            return Err(Error::Internal(format!(
                "heads {:?} {:?} are not dense f32 on the CPU",
                tensor.shape(),
                stride
            )));
        }
        let start = layout.start_offset();
        Ok(HeadsView { guard, start, batch_stride: stride[0], token_stride: stride[1], batch, tokens, heads, width })
    }

    /// Rows `tokens` of one head as a `[tokens, width]` matrix.
    pub fn head(&self, batch: usize, head: usize, tokens: std::ops::Range<usize>) -> matrix::Mat<'_> {
        assert!(batch < self.batch && head < self.heads && tokens.start <= tokens.end && tokens.end <= self.tokens);
        let Storage::Cpu(CpuStorage::F32(data)) = &*self.guard else { unreachable!("checked when the view was made") };
        if tokens.is_empty() {
            return matrix::Mat::strided(&[], 0, self.width, self.token_stride);
        }
        let first = self.start + batch * self.batch_stride + tokens.start * self.token_stride + head * self.width;
        matrix::Mat::strided(&data[first..], tokens.len(), self.width, self.token_stride)
    }
}

/// How heads of queries share heads of keys and values, and how work is split over them.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    pub batch: usize,
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
}

impl Groups {
    /// (batch row, kv head) of every task: query heads of one kv head share a task, since they add to the same
    /// gradients of k and v.
    pub fn tasks(self) -> impl rayon::iter::IndexedParallelIterator<Item = (usize, usize)> {
        use rayon::prelude::*;
        (0..self.batch * self.kv_heads).into_par_iter().map(move |i| (i / self.kv_heads, i % self.kv_heads))
    }

    /// Query heads of a kv head.
    pub fn heads_of(self, kv_head: usize) -> std::ops::Range<usize> {
        let group = self.heads / self.kv_heads;
        kv_head * group..(kv_head + 1) * group
    }
}

/// How the heads of a gated recurrence share states, and how work is split over them.
#[derive(Debug, Clone, Copy)]
pub struct Sharing {
    pub batch: usize,
    /// H, of queries.
    pub heads: usize,
    /// N: a state for every gate.
    pub states: usize,
    /// G, of keys and values.
    pub kv_heads: usize,
}

impl Sharing {
    /// Whether G divides N and N divides H.
    pub fn fits(self) -> bool {
        let divides = |a: usize, b: usize| a > 0 && b > 0 && b.is_multiple_of(a);
        divides(self.kv_heads, self.states) && divides(self.states, self.heads)
    }

    /// (batch row, kv head) of every task: all that shares a kv head, since it adds to the same gradients.
    pub fn tasks(self) -> impl rayon::iter::IndexedParallelIterator<Item = (usize, usize)> {
        Groups { batch: self.batch, heads: self.heads, kv_heads: self.kv_heads }.tasks()
    }

    /// States of a kv head.
    pub fn states_of(self, kv_head: usize) -> std::ops::Range<usize> {
        let share = self.states / self.kv_heads;
        kv_head * share..(kv_head + 1) * share
    }

    /// Query heads of a state.
    pub fn queries_of(self, state: usize) -> std::ops::Range<usize> {
        let share = self.heads / self.states;
        state * share..(state + 1) * share
    }
}

static POISON: AtomicBool = AtomicBool::new(false);

/// Fills buffers that kernels must overwrite with NaN from now on: the operators' tests switch it on.
pub fn poison_unwritten() {
    POISON.store(true, Ordering::Relaxed);
}

/// A fresh buffer that several tasks fill, each its own part.
pub struct Output {
    data: Vec<f32>,
    shape: Vec<usize>,
}

/// A pointer into an [`Output`], copied into tasks.
#[derive(Clone, Copy)]
pub struct OutputPointer(*mut f32);
// SAFETY: the pointer is only dereferenced through `rows`/`slice`, whose callers keep tasks on disjoint elements.
unsafe impl Send for OutputPointer {}
unsafe impl Sync for OutputPointer {}

impl Output {
    pub fn zeros(shape: &[usize]) -> Self {
        Output { data: vec![0.0; shape.iter().product()], shape: shape.to_vec() }
    }

    /// Elements that the caller writes, every one, before anything reads them. Zeroing a buffer that is overwritten
    /// anyway costs a pass over memory; tests are built with NaN in it, so that a kernel which leaves a hole fails.
    pub fn unwritten(shape: &[usize]) -> Self {
        let n = shape.iter().product();
        if cfg!(any(test, debug_assertions)) || POISON.load(Ordering::Relaxed) {
            return Output { data: vec![f32::NAN; n], shape: shape.to_vec() };
        }
        let mut data: ManuallyDrop<Vec<MaybeUninit<f32>>> = ManuallyDrop::new(Vec::with_capacity(n));
        // SAFETY: same layout and allocator; the elements are plain numbers that the caller writes before any read.
        let data = unsafe { Vec::from_raw_parts(data.as_mut_ptr().cast::<f32>(), n, data.capacity()) };
        Output { data, shape: shape.to_vec() }
    }

    /// Tokens [B, T, ..] that a kernel writes inside documents; zero outside.
    pub fn padded(shape: &[usize], documents: &Documents) -> Self {
        let mut output = Output::unwritten(shape);
        let width: usize = shape[2..].iter().product();
        for row in 0..documents.batch() {
            for gap in documents.padding(row) {
                let start = row * shape[1];
                output.data[(start + gap.start) * width..(start + gap.end) * width].fill(0.0);
            }
        }
        output
    }

    pub fn pointer(&mut self) -> OutputPointer {
        OutputPointer(self.data.as_mut_ptr())
    }

    pub fn data(&mut self) -> &mut [f32] {
        &mut self.data
    }

    pub fn tensor(self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.data, self.shape, &Device::Cpu)?)
    }
}

impl OutputPointer {
    /// A `[rows, cols]` window with `stride` elements between rows, starting at element `start`.
    ///
    /// # Safety
    /// The window lies inside the buffer, the buffer outlives it, and no other task touches its elements.
    pub unsafe fn rows<'a>(self, start: usize, rows: usize, cols: usize, stride: usize) -> matrix::MatMut<'a> {
        unsafe { matrix::MatMut::from_raw(self.0.add(start), rows, cols, stride) }
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// As for [`OutputPointer::rows`].
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// The gradients that a kernel has written, without those that nobody wants.
pub(crate) fn gradients_of(found: Vec<Output>, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let keep = |(found, want): (Output, &bool)| if *want { found.tensor().map(Some) } else { Ok(None) };
    found.into_iter().zip(wanted).map(keep).collect()
}

/// `n` zeros in a buffer that is kept.
pub fn zeroed(buffer: &mut Vec<f32>, n: usize) {
    buffer.clear();
    buffer.resize(n, 0.0);
}

/// Gives f32 on the CPU; used where weights of any storage type enter a computation.
pub fn to_f32(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
}

/// Splits `0..n` into at most one range per thread and task size, for row-parallel loops.
pub fn blocks(n: usize, size: usize) -> impl rayon::iter::IndexedParallelIterator<Item = std::ops::Range<usize>> {
    use rayon::prelude::*;
    let count = n.div_ceil(size.max(1));
    (0..count).into_par_iter().map(move |i| i * size..((i + 1) * size).min(n))
}
