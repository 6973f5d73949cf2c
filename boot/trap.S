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

    # Filled by `arch::descriptors` before anything can trap.
    .section .bss.domu_sealed, "aw", @nobits
    .balign 16
    .globl domu_idt
domu_idt:
    .skip   32 * 16
    .globl domu_tss
domu_tss:
    .skip   104
    .globl domu_gdt
domu_gdt:
    .skip   5 * 8

    .text
