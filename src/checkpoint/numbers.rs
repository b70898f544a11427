//! The numbers of tensors as they stand in files, looked at without a copy of them.

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that a thread looks at before it asks for more.
const BLOCK: usize = 1 << 16;

/// The numbers of one tensor in a file.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'a> {
    pub bytes: &'a [u8],
    /// f32, f16 or bf16.
    pub dtype: DType,
}

impl Numbers<'_> {
    fn width(self) -> usize {
        self.dtype.size_in_bytes()
    }

    fn len(self) -> usize {
        self.bytes.len() / self.width()
    }

    /// The number at `index` as f32.
    fn at(self, index: usize) -> f32 {
        let b = &self.bytes[index * self.width()..];
        match self.dtype {
            DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        }
    }

    /// Elements `from` to `to`.
    fn part(self, from: usize, to: usize) -> Self {
        let bytes = &self.bytes[from * self.width()..to * self.width()];
        Numbers { bytes, ..self }
    }

    /// The first `most` elements.
    pub fn beginning(self, most: usize) -> Self {
        self.part(0, most.min(self.len()))
    }

    /// The first element that is NaN or infinite: all bits of its exponent are set.
    pub fn first_not_finite(self) -> Option<(usize, f32)> {
        let at = match self.dtype {
            DType::F16 => first(self.bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            DType::BF16 => first(self.bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            _ => first(self.bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        };
        at.map(|at| (at, self.at(at)))
    }

    /// The first element at which the other tensor, of as many elements, has another number.
    pub fn first_difference(self, other: Self) -> Option<(usize, [f32; 2])> {
        let blocks = self.len().min(other.len()).div_ceil(BLOCK);
        (0..blocks).into_par_iter().find_map_first(|block| {
            let (from, to) = (block * BLOCK, ((block + 1) * BLOCK).min(self.len()).min(other.len()));
            let (a, b) = (self.part(from, to), other.part(from, to));
            if a.dtype == b.dtype && a.bytes == b.bytes {
                return None;
            }
            let differs = |i: &usize| a.at(*i) != b.at(*i);
            (0..to - from).find(differs).map(|i| (from + i, [a.at(i), b.at(i)]))
        })
    }
}

/// The first element of `N` bytes that `is` true of.
fn first<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    bytes.par_chunks(BLOCK * N).enumerate().find_map_first(|(block, bytes)| {
        let (elements, _) = bytes.as_chunks::<N>();
        // The fold looks at all of them, so that the loop has no branch and is vectorised.
        let found = elements.iter().fold(false, |found, &element| found | is(element));
        let at = if found { elements.iter().position(|&element| is(element)) } else { None };
        at.map(|at| block * BLOCK + at)
    })
}

/// The place of an element in a tensor of that shape: `[3, 17]`.
pub(crate) fn place_in(shape: &[usize], mut index: usize) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (at, &n) in place.iter_mut().zip(shape).rev() {
        (*at, index) = (index % n.max(1), index / n.max(1));
    }
    place
}
