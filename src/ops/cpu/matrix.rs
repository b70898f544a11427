//! Row-strided f32 matrices and their products, so that heads are used where they lie: small ones by tiles in registers
//! (`small_product`), large ones by the `gemm` crate.

use super::small_product::SmallProduct;
pub use super::small_product::Triangle;
use super::transpose::transpose;
use gemm::Parallelism;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of the largest right factor of a small product: it stays in the nearest caches.
const SMALL: usize = 1 << 15;

thread_local! {
    /// Where a thread copies such factors.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(vec![]) };
}

/// A read-only `[rows, cols]` matrix.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    ptr: *const f32,
    pub rows: usize,
    pub cols: usize,
    row_stride: isize,
    col_stride: isize,
    life: PhantomData<&'a f32>,
}
// SAFETY: a shared view of f32 elements, like `&[f32]`.
unsafe impl Send for Mat<'_> {}
unsafe impl Sync for Mat<'_> {}

impl<'a> Mat<'a> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self::strided(data, rows, cols, cols)
    }

    /// `stride` elements between the starts of rows.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len());
        Mat { ptr: data.as_ptr(), rows, cols, row_stride: stride as isize, col_stride: 1, life: PhantomData }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        let Mat { ptr, rows, cols, row_stride, col_stride, life } = self;
        Mat { ptr, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride, life }
    }

    /// The same with its rows side by side, in `buffer`.
    fn packed(self, buffer: &mut Vec<f32>) -> Mat<'_> {
        let (rows, cols) = (self.rows, self.cols);
        buffer.resize(rows * cols, 0.0);
        if self.col_stride == 1 {
            for (to, i) in buffer.chunks_exact_mut(cols.max(1)).zip(0..rows) {
                to.copy_from_slice(self.row(i));
            }
        } else {
            assert_eq!(self.row_stride, 1, "a dense or a transposed matrix");
            let t = self.t();
            transpose(t.rows, t.cols, |i| t.row(i), buffer);
        }
        Mat::new(buffer, rows, cols)
    }

    /// A part of it.
    pub fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: inside this matrix; an empty part is not read.
        let ptr =
            unsafe { self.ptr.offset(rows.start as isize * self.row_stride + cols.start as isize * self.col_stride) };
        Mat { ptr, rows: rows.len(), cols: cols.len(), ..self }
    }

    /// Row `i` of a matrix that was not transposed.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.col_stride == 1);
        // SAFETY: inside the bounds that `strided` checked.
        unsafe { std::slice::from_raw_parts(self.ptr.offset(i as isize * self.row_stride), self.cols) }
    }
}

/// A writable row-major `[rows, cols]` matrix.
pub struct MatMut<'a> {
    ptr: *mut f32,
    pub rows: usize,
    pub cols: usize,
    row_stride: isize,
    life: PhantomData<&'a mut f32>,
}

impl<'a> MatMut<'a> {
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        // SAFETY: exactly the slice.
        unsafe { Self::from_raw(data.as_mut_ptr(), rows, cols, cols) }
    }

    /// # Safety
    /// All `rows` of `cols` elements, `stride` apart, are valid for the lifetime and not aliased.
    pub unsafe fn from_raw(ptr: *mut f32, rows: usize, cols: usize, stride: usize) -> Self {
        MatMut { ptr, rows, cols, row_stride: stride as isize, life: PhantomData }
    }

    /// A part of it.
    pub fn block(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: inside this matrix, borrowed from it.
        unsafe {
            let ptr = self.ptr.offset(rows.start as isize * self.row_stride + cols.start as isize);
            MatMut::from_raw(ptr, rows.len(), cols.len(), self.row_stride as usize)
        }
    }

    /// The same, to read.
    pub fn as_mat(&self) -> Mat<'_> {
        Mat {
            ptr: self.ptr,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: 1,
            life: PhantomData,
        }
    }

    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: inside the bounds promised at construction; `&mut self` keeps rows unaliased.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.offset(i as isize * self.row_stride), self.cols) }
    }

    /// `self = alpha a b + beta self` on one thread; `beta` 0 overwrites without reading.
    pub fn product(&mut self, alpha: f32, a: Mat, b: Mat, beta: f32) {
        if b.rows * b.cols > SMALL {
            return self.product_on(alpha, a, b, beta, Parallelism::None);
        }
        self.product_in(Triangle::None, alpha, a, b, beta);
    }

    /// The same of a part, with a right factor that the nearest caches hold.
    pub fn product_in(&mut self, triangle: Triangle, alpha: f32, a: Mat, b: Mat, beta: f32) {
        // Rows that lie far apart share few places of the nearest cache: read more than once, they are better copied.
        let apart = b.row_stride > 2 * b.cols as isize && self.rows > 16;
        if b.col_stride == 1 && !apart {
            return self.small_product(triangle, alpha, a, b, beta);
        }
        PACKED.with_borrow_mut(|buffer| self.small_product(triangle, alpha, a, b.packed(buffer), beta));
    }

    fn small_product(&mut self, triangle: Triangle, alpha: f32, a: Mat, b: Mat, beta: f32) {
        assert_eq!((self.rows, self.cols, a.cols), (a.rows, b.cols, b.rows), "shapes of a product");
        let product = SmallProduct {
            out: self.ptr,
            out_stride: self.row_stride as usize,
            m: self.rows,
            n: self.cols,
            k: a.cols,
            a: a.ptr,
            a_row_stride: a.row_stride,
            a_col_stride: a.col_stride,
            b: b.ptr,
            b_stride: b.row_stride as usize,
            alpha,
            beta,
            triangle,
        };
        // SAFETY: strides and sizes describe valid memory by the constructors; `&mut self` is not aliased.
        unsafe { product.run() }
    }

    /// The same on all threads; the split is over rows and columns only, so the result does not depend on it.
    pub fn product_parallel(&mut self, alpha: f32, a: Mat, b: Mat, beta: f32) {
        self.product_on(alpha, a, b, beta, Parallelism::Rayon(rayon::current_num_threads()));
    }

    fn product_on(&mut self, alpha: f32, a: Mat, b: Mat, beta: f32, threads: Parallelism) {
        assert_eq!((self.rows, self.cols, a.cols), (a.rows, b.cols, b.rows), "shapes of a product");
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        // SAFETY: strides and sizes describe valid memory by the constructors; `gemm` swaps alpha and beta:
        // its first factor scales what is read from the destination.
        unsafe {
            gemm::gemm(
                self.rows,
                self.cols,
                a.cols,
                self.ptr,
                1,
                self.row_stride,
                beta != 0.0,
                a.ptr,
                a.col_stride,
                a.row_stride,
                b.ptr,
                b.col_stride,
                b.row_stride,
                beta,
                alpha,
                false,
                false,
                false,
                threads,
            );
        }
    }
}
