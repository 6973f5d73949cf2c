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

    # The halt, and the callback for events that ends it: the only code that interrupts ever interrupt. Interrupts are off
    # again in the flags that the callback returns to, so that it comes once. It returns behind the halt wherever it came:
    # an event between the two instructions is held back by the CPU, but not by every emulator (QEMU 7.2 forgets that over
    # an exit), and a halt with interrupts off is the end of a domain.
    .section .text.domu_idle, "ax", @progbits
    .balign 16
    .globl domu_idle
    .type domu_idle, @function
domu_idle:
    sti
    hlt
    .globl domu_idle_end
domu_idle_end:
    cli
    ret
    .size domu_idle, . - domu_idle

    .balign 16
    .globl domu_callback
    .type domu_callback, @function
domu_callback:
    movq    $domu_abs_idle_end, (%rsp)
    andl    $~0x200, 16(%rsp)
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
