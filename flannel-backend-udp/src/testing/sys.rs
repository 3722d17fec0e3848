//! An allocator that counts, for the test that the packet path doesn't allocate.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    COUNT.with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is handed to the system's allocator as it is; counting touches a plain thread-local
// cell, which needs neither an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on, and the pointer came from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on, and the pointer came from the same allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How often this thread allocates or frees while the closure runs.
pub(crate) fn allocations(closure: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    closure();
    COUNT.get() - before
}
