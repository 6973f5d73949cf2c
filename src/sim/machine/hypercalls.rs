//! The hypercalls of the simulated Xen, decoded from the structures of [`crate::abi`].

use core::ops::Range;
use core::sync::atomic::Ordering;
use std::vec::Vec;

use crate::abi::errno::Errno;
use crate::abi::xen::{CONSOLE_IO_WRITE, DomainId, Hypercall, shared_info, vcpu_time_info};
use crate::abi::{event_channel, grant_table, hvm, memory, sched};
use crate::hypercall::Arg;
use crate::lifecycle::Reason;
use crate::shared::SharedPage;
use crate::sim::machine::memory::{STORE_FRAME, refill};
use crate::sim::machine::suspend::suspend;
use crate::sim::machine::{Machine, START_NS, with};
use crate::sim::scheduler::{self, Wait};
use crate::sim::{End, end};

/// How long an event takes to come.
const EVENT_NS: u64 = 1_000_000;

/// Answers a hypercall of the domain on this thread.
///
/// # Safety
///
/// As for the real one: the pointers among the arguments are valid for what the hypercall does with them.
pub(crate) unsafe fn hypercall(number: Hypercall, args: [Arg; 5]) -> i64 {
    scheduler::step();
    let operation = args[0].as_int();
    let fault = with(|machine| {
        assert!(machine.is_xen(), "a hypercall without Xen is an invalid instruction");
        machine.hypercalls.push((number, operation));
        machine.catch_up();
        machine.grants.check_touched();
        machine.fault.as_mut().and_then(|fault| fault(number, operation))
    });
    if let Some(errno) = fault {
        return -i64::from(errno.0);
    }
    // SAFETY: the caller vouches for the pointers, whose types follow from number and operation.
    let result = unsafe {
        match (number, operation) {
            (Hypercall::Hvm, hvm::GET_PARAM) => get_param(&mut *args[1].as_ptr()),
            (Hypercall::EventChannel, _) => event_channel_op(operation, args[1]),
            (Hypercall::SetTimer, deadline) => set_timer(deadline),
            (Hypercall::Hvm, hvm::SET_PARAM) => set_param(&*args[1].as_ptr()),
            (Hypercall::Sched, sched::SHUTDOWN) => shutdown(&*args[1].as_ptr()),
            (Hypercall::Sched, sched::WATCHDOG) => return watchdog(&*args[1].as_ptr()),
            (Hypercall::Sched, sched::POLL) => poll(&*args[1].as_ptr()),
            (Hypercall::Memory, memory::CURRENT_RESERVATION) => with(|machine| Ok(machine.reservation)),
            (Hypercall::Memory, memory::MAXIMUM_RESERVATION) => with(|machine| Ok(machine.maximum)),
            (Hypercall::Memory, memory::POPULATE_PHYSMAP) => populate_physmap(&*args[1].as_ptr()),
            (Hypercall::Memory, memory::MEMORY_MAP) => memory_map(&mut *args[1].as_ptr()),
            (Hypercall::Memory, memory::ADD_TO_PHYSMAP) => add_to_physmap(&*args[1].as_ptr()),
            (Hypercall::Memory, memory::DECREASE_RESERVATION) => decrease_reservation(&*args[1].as_ptr()),
            (Hypercall::GrantTable, _) => grant_table_op(operation, args[1], args[2].as_int()),
            (Hypercall::ConsoleIo, CONSOLE_IO_WRITE) => {
                console_io(core::slice::from_raw_parts(args[2].as_ptr(), args[1].as_int() as usize))
            }
            _ => Err(Errno::ENOSYS),
        }
    };
    match result {
        Ok(value) => value as i64,
        Err(errno) => -i64::from(errno.0),
    }
}

fn get_param(param: &mut hvm::Param) -> Result<u64, Errno> {
    with(|machine| machine.get_param(param))
}

/// Answers an operation on event channels.
///
/// # Safety
///
/// The argument points to the structure of the operation.
unsafe fn event_channel_op(operation: u64, argument: Arg) -> Result<u64, Errno> {
    // SAFETY: the caller vouches for the structure; each operation has one of its own.
    with(|machine| unsafe {
        match operation {
            event_channel::SEND => machine.send_event((*argument.as_ptr::<event_channel::EvtchnSend>()).port),
            event_channel::CLOSE => machine.close_port((*argument.as_ptr::<event_channel::EvtchnSend>()).port),
            event_channel::ALLOC_UNBOUND => machine.alloc_unbound(&mut *argument.as_ptr()),
            event_channel::BIND_INTERDOMAIN => machine.bind_interdomain(&mut *argument.as_ptr()),
            event_channel::BIND_VIRQ => machine.bind_virq(&mut *argument.as_ptr()),
            event_channel::BIND_IPI => machine.bind_ipi(&mut *argument.as_ptr()),
            event_channel::STATUS => machine.port_status(&mut *argument.as_ptr()),
            event_channel::INIT_CONTROL => machine.init_control(&mut *argument.as_ptr()),
            event_channel::EXPAND_ARRAY => machine.expand_array(&*argument.as_ptr()),
            event_channel::SET_PRIORITY => machine.set_priority(&*argument.as_ptr()),
            _ => Err(Errno::ENOSYS),
        }
    })
}

/// Answers an operation on grants, for each of a batch of structures.
///
/// # Safety
///
/// The argument points to so many structures of the operation.
unsafe fn grant_table_op(operation: u64, argument: Arg, count: u64) -> Result<u64, Errno> {
    /// Does something with each structure.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn each<T>(argument: Arg, count: u64, mut act: impl FnMut(&mut Machine, &mut T)) -> Result<u64, Errno> {
        // SAFETY: the caller vouches for the structures.
        let batch = unsafe { core::slice::from_raw_parts_mut(argument.as_ptr::<T>(), count as usize) };
        with(|machine| batch.iter_mut().for_each(|request| act(machine, request)));
        Ok(0)
    }
    // SAFETY: passed on from the caller; each operation has a structure of its own.
    unsafe {
        match operation {
            grant_table::MAP_GRANT_REF => each(argument, count, Machine::map_grant),
            grant_table::UNMAP_GRANT_REF => each(argument, count, Machine::unmap_grant),
            grant_table::COPY => each(argument, count, Machine::copy_grant),
            grant_table::QUERY_SIZE if count == 1 => {
                each(argument, count, |machine, query| machine.grant_table_size(query))
            }
            grant_table::QUERY_SIZE => Err(Errno::EINVAL),
            _ => Err(Errno::ENOSYS),
        }
    }
}

/// Sets the timer, as Xen does: deadlines too far ahead come after 100 ms.
fn set_timer(deadline_ns: u64) -> Result<u64, Errno> {
    with(|machine| {
        let deadline = machine.clock_at(deadline_ns);
        let ahead = deadline.saturating_sub(machine.clock_ns);
        machine.events.timer_ns = match deadline_ns {
            0 => None,
            _ if ahead > 1 << 50 => Some(machine.clock_ns + 100_000_000),
            _ => Some(deadline),
        };
        Ok(0)
    })
}

fn set_param(param: &hvm::Param) -> Result<u64, Errno> {
    with(|machine| match param.index {
        hvm::CALLBACK_IRQ => {
            machine.events.callback = Some(param.value);
            machine.show_wall_clock();
            Ok(0)
        }
        _ => Err(Errno::EPERM),
    })
}

fn shutdown(shutdown: &sched::Shutdown) -> Result<u64, Errno> {
    if shutdown.reason == sched::SUSPEND {
        return suspend();
    }
    let reasons = [Reason::Poweroff, Reason::Reboot, Reason::Crash, Reason::Watchdog];
    let reason = reasons.into_iter().find(|&reason| reason as u32 == shutdown.reason).ok_or(Errno::EINVAL)?;
    end(End::Shutdown(reason))
}

/// Starts, feeds or stops one of two watchdogs. An error has no sign in 64 bits, as Xen's has none.
fn watchdog(watchdog: &sched::Watchdog) -> i64 {
    let result = with(|machine| {
        let deadline = machine.clock_ns + u64::from(watchdog.timeout) * 1_000_000_000;
        let place = match watchdog.id {
            0 => machine.watchdogs.iter().position(Option::is_none).ok_or(Errno::ENOSPC)?,
            id => id as usize - 1,
        };
        let slot = machine.watchdogs.get_mut(place).ok_or(Errno::EINVAL)?;
        if watchdog.id != 0 && slot.is_none() {
            return Err(Errno::EINVAL);
        }
        *slot = (watchdog.timeout > 0).then_some(deadline);
        Ok(if watchdog.id == 0 { place as i32 + 1 } else { 0 })
    });
    i64::from(result.unwrap_or_else(|errno| -errno.0) as u32)
}

/// Returns soon if a port is pending; else the backend has a turn, and time passes up to an event or the deadline.
///
/// # Safety
///
/// The structure's pointer is valid for its number of ports.
unsafe fn poll(poll: &sched::Poll) -> Result<u64, Errno> {
    if poll.nr_ports > 128 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the structure says how many ports its pointer has, and the caller of the hypercall vouches for it.
    let ports: Vec<u32> = unsafe { core::slice::from_raw_parts(poll.ports, poll.nr_ports as usize) }.to_vec();
    let pending = with(|machine| {
        if !machine.any_pending(&ports) {
            machine.backend_turn();
        }
        let pending = machine.any_pending(&ports);
        machine.clock_ns += if pending { EVENT_NS } else { 0 };
        pending
    });
    if !pending {
        let deadline_ns = (poll.timeout != 0).then(|| with(|machine| machine.clock_at(poll.timeout)));
        scheduler::wait(&Wait::Poll { ports, deadline_ns });
    }
    Ok(0)
}

/// Stores the memory map.
///
/// # Safety
///
/// The structure's pointer is valid for its number of entries.
unsafe fn memory_map(map: &mut memory::MemoryMap) -> Result<u64, Errno> {
    with(|machine| {
        let count = machine.map.len().min(map.nr_entries as usize);
        for (index, &(addr, size, kind)) in machine.map[..count].iter().enumerate() {
            // SAFETY: the caller of the hypercall vouches for `nr_entries` entries behind the pointer.
            unsafe { map.buffer.add(index).write_unaligned(memory::E820Entry { addr, size, kind }) };
        }
        map.nr_entries = count as u32;
        Ok(0)
    })
}

fn add_to_physmap(request: &memory::AddToPhysmap) -> Result<u64, Errno> {
    if request.domid == DomainId::SELF.0 && request.space == memory::MAP_SPACE_GRANT_TABLE {
        return with(|machine| machine.place_grant_table(request.index, request.gpfn));
    }
    if request.domid != DomainId::SELF.0 || request.space != memory::MAP_SPACE_SHARED_INFO || request.index != 0 {
        return Err(Errno::EINVAL);
    }
    with(|machine| {
        let address = request.gpfn << 12;
        let over = machine.shown_at(request.gpfn);
        assert!(over.is_none(), "shared_info is mapped over {over:x?}: that page is lost");
        let before = machine.memory.ram(address);
        let page = before.unwrap_or_else(|| machine.memory.back(address, 4096));
        // SAFETY: the page is aligned and lives as long as the process; both ends use `SharedPage`s of it.
        let page = unsafe { SharedPage::new(page, 1) };
        if before.is_some() {
            refill(page, 0);
        }
        // The record is older than the domain's counter, as on a real host: its time stamp has wrapped. On a host that it has
        // come to it is not.
        let age = START_NS / 2;
        let ticks = if machine.resumes == 0 { 0 } else { machine.clock_ns - START_NS };
        let system_time = (START_NS + ticks).saturating_add_signed(machine.ahead_ns);
        let age = age.min(system_time);
        let stamp = ticks.wrapping_sub(age);
        page.u64(shared_info::VCPU_TIME + vcpu_time_info::TSC_TIMESTAMP).store(stamp, Ordering::Relaxed);
        page.u64(shared_info::VCPU_TIME + vcpu_time_info::SYSTEM_TIME).store(system_time - age, Ordering::Relaxed);
        // One tick is one nanosecond: a 32-bit fraction of one half, shifted by one.
        page.u32(shared_info::VCPU_TIME + vcpu_time_info::TSC_TO_SYSTEM_MUL).store(1 << 31, Ordering::Relaxed);
        page.u8(shared_info::VCPU_TIME + vcpu_time_info::TSC_SHIFT).store(1, Ordering::Relaxed);
        page.u32(shared_info::VCPU_TIME + vcpu_time_info::VERSION).store(2, Ordering::Release);
        machine.info = Some(page);
        if machine.resumes > 0 {
            // By those who serve the rings of the new domain, before it looks.
            machine.raise(machine.events.store_port);
            machine.raise(machine.events.console_port);
        }
        Ok(0)
    })
}

/// Where the memory of the simulated host ends, of 64 GiB: what a map shows beyond is not even to be filled in when it is touched,
/// and Xen does not take it back.
const HOST_FRAMES: u64 = 64 << 18;

/// The extents that a structure names, as far as Xen does them in one call: doing fewer than asked is normal.
///
/// # Safety
///
/// The structure's pointer is valid for its number of extents.
unsafe fn extents(reservation: &memory::Reservation, machine: &Machine) -> Result<Vec<Range<u64>>, Errno> {
    // SAFETY: the structure says how many extents its pointer has, and the caller of the hypercall vouches for it.
    let starts =
        unsafe { core::slice::from_raw_parts(reservation.extent_start, reservation.nr_extents as usize) }.to_vec();
    if reservation.extent_order > 9 {
        return Err(Errno::EPERM);
    }
    let size = 1 << reservation.extent_order;
    assert!(starts.iter().all(|start| start % size == 0), "an extent is aligned to its size");
    Ok(starts.into_iter().take(machine.extents_taken as usize).map(|start| start..start + size).collect())
}

/// Takes extents back.
///
/// # Safety
///
/// As for [`extents`].
unsafe fn decrease_reservation(reservation: &memory::Reservation) -> Result<u64, Errno> {
    with(|machine| {
        // SAFETY: passed on from the caller.
        let mut extents = unsafe { extents(reservation, machine) }?;
        let first = extents.iter().position(|range| range.end > HOST_FRAMES).unwrap_or(extents.len());
        extents.truncate(first);
        for range in &extents {
            let twice = machine.given_back.iter().any(|other| other.start < range.end && range.start < other.end);
            assert!(!twice, "given back twice: {range:x?}");
            machine.grants.freed(range.clone());
            machine.memory.fill(range, 0xff);
            let size = range.end - range.start;
            // What was never filled in was not counted.
            let unfilled = machine.unfilled.min(size);
            machine.unfilled -= unfilled;
            machine.reservation = machine.reservation.saturating_sub(size - unfilled);
            match machine.given_back.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                Some(last) if last.start == range.end => last.start = range.start,
                _ => machine.given_back.push(range.clone()),
            }
        }
        Ok(extents.len() as u64)
    })
}

/// Fills extents in, up to the domain's maximum.
///
/// # Safety
///
/// As for [`extents`].
unsafe fn populate_physmap(reservation: &memory::Reservation) -> Result<u64, Errno> {
    with(|machine| {
        // SAFETY: passed on from the caller.
        let extents = unsafe { extents(reservation, machine) }?;
        let mut done = 0;
        for range in extents {
            let size = range.end - range.start;
            if machine.reservation + size > machine.maximum || (size > 1 && machine.fragmented) {
                break;
            }
            let found = machine.given_back.iter().position(|out| out.start <= range.start && range.end <= out.end);
            let found = found.unwrap_or_else(|| panic!("filled in where Xen has taken nothing: {range:x?}"));
            let out = machine.given_back.swap_remove(found);
            let rest = [out.start..range.start, range.end..out.end];
            machine.given_back.extend(rest.into_iter().filter(|rest| !rest.is_empty()));
            machine.memory.fill(&range, 0);
            machine.reservation += size;
            done += 1;
        }
        Ok(done)
    })
}

fn console_io(text: &[u8]) -> Result<u64, Errno> {
    with(|machine| {
        if !machine.initial_domain {
            return Err(Errno::EPERM);
        }
        machine.hypervisor.extend_from_slice(text);
        Ok(0)
    })
}

impl Machine {
    pub(in crate::sim) fn get_param(&self, param: &mut hvm::Param) -> Result<u64, Errno> {
        param.value = match param.index {
            hvm::CONSOLE_PFN => self.console_frame,
            hvm::CONSOLE_EVTCHN if self.reader.is_some() => {
                u64::from(self.console_port_param.unwrap_or(self.events.console_port))
            }
            hvm::STORE_PFN if self.store.is_some() => STORE_FRAME,
            hvm::STORE_EVTCHN if self.store.is_some() => u64::from(self.events.store_port),
            hvm::CONSOLE_EVTCHN | hvm::STORE_PFN | hvm::STORE_EVTCHN => 0,
            _ => return Err(Errno::EINVAL),
        };
        Ok(0)
    }

    pub(in crate::sim) fn any_pending(&self, ports: &[u32]) -> bool {
        ports.iter().any(|&port| self.is_pending(port))
    }
}
