//! The hypercalls for event channels and the timer.

use super::{Arg, call, check};
use crate::abi::errno::Errno;
use crate::abi::event_channel::{
    ALLOC_UNBOUND, AllocUnbound, BIND_INTERDOMAIN, BIND_IPI, BIND_VIRQ, BindInterdomain, BindIpi, BindVirq, CLOSE,
    EXPAND_ARRAY, EvtchnSend, ExpandArray, INIT_CONTROL, InitControl, SEND, SET_PRIORITY, STATUS, SetPriority, Status,
};
use crate::abi::hvm;
use crate::abi::xen::{DomainId, Hypercall};

/// An operation on a structure of its own.
fn operation<T>(number: u64, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: Xen reads and writes the structure that belongs to the operation, as the callers below pass it; it is live
    // and exclusively borrowed for the call. Operations that let Xen write to other memory are unsafe functions below.
    let result = unsafe {
        call(Hypercall::EventChannel, [Arg::int(number), Arg::inout(argument), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|_| ())
}

/// Raises an event on a local port. An unbound port swallows it; a closed one is an error.
pub(crate) fn event_send(port: u32) -> Result<(), Errno> {
    operation(SEND, &mut EvtchnSend { port })
}

/// Makes a port that a domain may bind to.
pub(crate) fn event_alloc_unbound(remote: DomainId) -> Result<u32, Errno> {
    let mut request = AllocUnbound { dom: DomainId::SELF.0, remote_dom: remote.0, port: 0 };
    operation(ALLOC_UNBOUND, &mut request).map(|()| request.port)
}

/// Binds a new port to one of another domain, which is raised at once.
pub(crate) fn event_bind_interdomain(remote: DomainId, remote_port: u32) -> Result<u32, Errno> {
    let mut request = BindInterdomain { remote_dom: remote.0, pad: 0, remote_port, local_port: 0 };
    operation(BIND_INTERDOMAIN, &mut request).map(|()| request.local_port)
}

/// Binds a new port to a virtual interrupt of virtual CPU 0.
pub(crate) fn event_bind_virq(virq: u32) -> Result<u32, Errno> {
    let mut request = BindVirq { virq, vcpu: 0, port: 0 };
    operation(BIND_VIRQ, &mut request).map(|()| request.port)
}

/// Makes a port on which this domain notifies itself.
pub(crate) fn event_bind_ipi() -> Result<u32, Errno> {
    let mut request = BindIpi { vcpu: 0, port: 0 };
    operation(BIND_IPI, &mut request).map(|()| request.port)
}

/// Closes a port.
pub(crate) fn event_close(port: u32) -> Result<(), Errno> {
    operation(CLOSE, &mut EvtchnSend { port })
}

/// Switches the domain to the FIFO interface, with the control block of virtual CPU 0 at the beginning of a frame.
///
/// # Safety
///
/// The frame is RAM of the domain's, and Xen's to write from now on: nothing accesses it but by atomics.
pub(crate) unsafe fn event_init_control(frame: u64) -> Result<(), Errno> {
    let mut request = InitControl { control_gfn: frame, offset: 0, vcpu: 0, link_bits: 0, pad: [0; 7] };
    operation(INIT_CONTROL, &mut request)
}

/// Adds a page of event words to those of the FIFO interface.
///
/// # Safety
///
/// As for [`event_init_control`].
pub(crate) unsafe fn event_expand_array(frame: u64) -> Result<(), Errno> {
    operation(EXPAND_ARRAY, &mut ExpandArray { array_gfn: frame })
}

/// Sets the priority of a port, for events from now on.
pub(crate) fn event_set_priority(port: u32, priority: u8) -> Result<(), Errno> {
    operation(SET_PRIORITY, &mut SetPriority { port, priority: priority.into() })
}

/// What a port of this domain is bound to.
pub(crate) fn event_status(port: u32) -> Result<Status, Errno> {
    let mut request = Status { dom: DomainId::SELF.0, port, ..Status::default() };
    operation(STATUS, &mut request).map(|()| request)
}

/// Has the timer of this virtual CPU raise its VIRQ at a system time; zero stops it.
pub(crate) fn set_timer(deadline_ns: u64) -> Result<(), Errno> {
    // SAFETY: the operation takes a number only.
    let result =
        unsafe { call(Hypercall::SetTimer, [Arg::int(deadline_ns), Arg::NONE, Arg::NONE, Arg::NONE, Arg::NONE]) };
    check(result).map(|_| ())
}

/// Has pending events interrupt the virtual CPU by this vector while interrupts are enabled.
pub(crate) fn set_callback_vector(vector: u8) -> Result<(), Errno> {
    let param = hvm::Param {
        domid: DomainId::SELF.0,
        pad: 0,
        index: hvm::CALLBACK_IRQ,
        value: hvm::CALLBACK_VECTOR | u64::from(vector),
    };
    // SAFETY: Xen reads the structure, which is live for the call. The program runs in 64-bit mode, whose layout of
    // shared_info Xen takes from this call on.
    let result = unsafe {
        call(Hypercall::Hvm, [Arg::int(hvm::SET_PARAM), Arg::input(&param), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|_| ())
}
