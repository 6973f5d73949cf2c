# The exceptions: each of the 32 vectors has a stub that brings the stack into one form, `arch::Frame`, for `domu_trap`,
# which does not return. The descriptor tables name a stack of its own for each kind of exception, so that a stub runs
# whatever has become of the stack pointer.

    .set DOMU_STUB_SIZE, 16

    # Vectors for which the CPU pushes an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX.
    .set DOMU_PUSHES_ERROR_CODE, 0x60227d00

    .section .text.domu_trap_stubs, "ax", @progbits
    .code64
    .balign DOMU_STUB_SIZE
    .globl domu_trap_stubs
    .type domu_trap_stubs, @function
domu_trap_stubs:
    .set domu_vector, 0
    .rept 32
    .balign DOMU_STUB_SIZE
    .if (DOMU_PUSHES_ERROR_CODE >> domu_vector) & 1 == 0
    pushq   $0
    .endif
    pushq   $domu_vector
    jmp     .Ldomu_trap_common
    .set domu_vector, domu_vector + 1
    .endr
    .size domu_trap_stubs, . - domu_trap_stubs

    .type .Ldomu_trap_common, @function
.Ldomu_trap_common:
    pushq   %rax
    pushq   %rbx
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %rbp
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    cld
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    domu_trap
    ud2
    .size .Ldomu_trap_common, . - .Ldomu_trap_common

    # The halt, and the callback for events that ends it. Interrupts are off again in the flags that the callback returns
    # to, so that one halt has one callback. The CPU holds back what comes between the two instructions, but QEMU 7.2, with
    # Xen on it, forgets that over an exit; then the callback returns behind the halt, as a halt with interrupts off would be
    # the end of the domain. It has also been seen to come again inside of itself, and is harmless wherever it comes.
    .section .text.domu_idle, "ax", @progbits
    .balign 16
    .globl domu_idle
    .type domu_idle, @function
domu_idle:
    sti
    .globl domu_idle_halt
domu_idle_halt:
    hlt
    .globl domu_idle_end
domu_idle_end:
    cli
    ret
    .size domu_idle, . - domu_idle

    # Of the linker script; see `boot/symbols.S` for why they are weak.
    .weak domu_abs_idle_halt, domu_abs_idle_end

    .balign 16
    .globl domu_callback
    .type domu_callback, @function
domu_callback:
    cmpq    $domu_abs_idle_halt, (%rsp)
    jne     1f
    movq    $domu_abs_idle_end, (%rsp)
1:  andl    $~0x200, 16(%rsp)
    iretq
    .size domu_callback, . - domu_callback

    # Filled by `arch::descriptors` before anything can trap.
    .section .bss.domu_sealed, "aw", @nobits
    .balign 16
    .globl domu_idt
domu_idt:
    .skip   33 * 16
    .globl domu_tss
domu_tss:
    .skip   104
    .globl domu_gdt
domu_gdt:
    .skip   5 * 8

    .text
