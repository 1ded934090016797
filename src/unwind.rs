//! Functions of the unwinder, so that the static program carries no reader of debug information.
//!
//! A panic asks `_Unwind_Backtrace` for the frames to print, and std finds their names and lines by readers of ELF,
//! DWARF and zlib: a twelfth of the program, for debug information that a stripped program does not have. Here it is
//! told that there are no frames, and link-time optimization leaves out what would have printed them. The message of
//! a panic, its place in the source and the unwinding itself are not affected.
//!
//! The others are here because libunwind has them in the same object file: with one of them missing, the linker
//! would take that file, and find the rest twice. They do what they do there.
#![expect(unsafe_code, reason = "the names and the pointers are those of the unwinder's interface")]

use std::ffi::{c_int, c_void};
use std::process::abort;

/// `_URC_END_OF_STACK`
const END_OF_STACK: c_int = 5;

unsafe extern "C" {
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn __unw_is_signal_frame(context: *mut c_void) -> c_int;
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_visit: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _Unwind_GetIPInfo(context: *mut c_void, is_before_instruction: *mut c_int) -> usize {
    // SAFETY: std passes the context that libunwind has given it.
    let is_signal_frame = unsafe { __unw_is_signal_frame(context) } > 0;
    // SAFETY: std passes the address of a variable.
    unsafe { is_before_instruction.write(c_int::from(is_signal_frame)) };
    // SAFETY: as above.
    unsafe { _Unwind_GetIP(context) }
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetDataRelBase(_context: *mut c_void) -> usize {
    abort()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetTextRelBase(_context: *mut c_void) -> usize {
    abort()
}
