//! An allocator that counts, for the test that the packet path doesn't allocate, and the socket by which a pod with
//! `CAP_NET_RAW` makes super-packets of any kind.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

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

/// Sends a packet behind its virtio-net header to a link, as the kernel would have made it (`packet(7)`,
/// `PACKET_VNET_HDR`).
pub(crate) fn send_raw(link: u32, ethertype: u16, packet: &[u8]) -> io::Result<()> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let (fd, on) = (socket.as_raw_fd(), 1_i32);
    // SAFETY: the descriptor is open for the whole call, and the kernel reads one int, which is there.
    let set = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), len)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all bits zero are a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = ethertype.to_be();
    to.sll_ifindex = link.cast_signed();
    // SAFETY: both pointers are to live values of the lengths given.
    let written = unsafe {
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::sendto(fd, packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), len)
    };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
