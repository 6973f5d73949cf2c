# From the PVH entry point, 32-bit protected mode without paging, to Rust in 64-bit mode.
#
# Assumed is what the boot protocol promises (Xen, docs/misc/pvh.pandoc) and nothing more: EBX points to the start
# info, CS, DS, ES and SS are flat, paging and interrupts are off. There is no stack; the direction flag, all other
# registers, the FPU and the extended state are undefined. Memory protection is in force from the first 64-bit
# instruction on: text R-X, read-only data R--, everything else below 4 GiB RW-NX, page 0 and the page below the stack
# absent.
#
# Kept in registers until 64-bit mode: EBP start info. Kept on the stack, from the top: 1 if the CPU takes VMMCALL,
# ECX of CPUID leaf 1, EDX of CPUID leaf 0x80000001.

    .set CR0_PE_MP_ET_NE_WP_PG, 0x80010033
    .set CR4_PAE_OSFXSR_OSXMMEXCPT, 0x620
    .set CR4_OSXSAVE, 0x40000
    .set MSR_EFER, 0xc0000080
    .set EFER_LME, 0x100
    .set EFER_NXE, 0x800
    .set CPUID1_ECX_XSAVE, 26
    .set CPUID1_ECX_RDRAND, 30
    .set CPUID81_EDX_NX, 20
    .set CPUID81_EDX_LONG_MODE, 29
    .set XCR0_KNOWN, 0xe7                   # x87, SSE, AVX, AVX-512
    .set MXCSR_DEFAULT, 0x1f80
    .set XCR0_X87_SSE, 3
    .set DEBUG_PORT, 0xe9

    .set PTE_PRESENT, 1
    .set PTE_WRITABLE, 2
    .set PTE_HUGE, 0x80
    .set PTE_NX_HIGH, 0x80000000

    .section .text.domu_start, "ax", @progbits
    .code32
    .globl domu_start
    .type domu_start, @function
domu_start:
    cld
    cli
    movl    $domu_needs_the_link_argument_Tdomu_ld, %eax
    movl    %ebx, %ebp
    movl    $domu_abs_stack_top, %esp
    pushl   $2                              # no trap, nested-task or alignment flag is left from before
    popfl

    # The loader clears what the file does not hold; not every one is trusted to, and it is short.
    xorl    %eax, %eax
    movl    $domu_abs_bss_start, %edi
    movl    $domu_abs_bss_size, %ecx
    shrl    $2, %ecx
    rep stosl

    # Vendor: AMD and Hygon take VMMCALL, all others VMCALL.
    cpuid
    xorl    %eax, %eax
    cmpl    $0x68747541, %ebx               # "Auth"enticAMD
    sete    %al
    cmpl    $0x6f677948, %ebx               # "Hygo"nGenuine
    sete    %dl
    orb     %dl, %al
    pushl   %eax

    movl    $1, %eax
    cpuid
    pushl   %ecx
    movl    $0x80000001, %eax
    cpuid
    pushl   %edx

    btl     $CPUID81_EDX_LONG_MODE, %edx
    jnc     .Ldomu_no_long_mode

    # ESI: the high half of an entry that forbids execution, 0 on a CPU without NX.
    xorl    %esi, %esi
    btl     $CPUID81_EDX_NX, %edx
    jnc     1f
    movl    $PTE_NX_HIGH, %esi
1:
    # PML4 and PDPT, the only tables that are not filled entirely.
    movl    $domu_abs_pml4, %edi
    movl    $2048, %ecx
    xorl    %eax, %eax
    rep stosl
    movl    $domu_abs_pml4, %edi
    leal    0x1000 + PTE_PRESENT + PTE_WRITABLE(%edi), %eax
    movl    %eax, (%edi)
    leal    0x1000(%edi), %ebx              # PDPT
    leal    0x2000 + PTE_PRESENT + PTE_WRITABLE(%edi), %eax
    movl    $4, %ecx
2:  movl    %eax, (%ebx)
    addl    $0x1000, %eax
    addl    $8, %ebx
    loop    2b

    # Page directories: 4 GiB in 2 MiB pages, read-write and not executable.
    leal    0x2000(%edi), %ebx
    movl    $PTE_PRESENT + PTE_WRITABLE + PTE_HUGE, %eax
    movl    $2048, %ecx
3:  movl    %eax, (%ebx)
    movl    %esi, 4(%ebx)
    addl    $0x200000, %eax
    addl    $8, %ebx
    loop    3b

    # The first of these pages, up to the end of the image, are 4 KiB pages instead.
    leal    0x2000(%edi), %ebx
    leal    0x6000 + PTE_PRESENT + PTE_WRITABLE(%edi), %eax
    movl    $domu_abs_page_tables, %ecx
4:  movl    %eax, (%ebx)
    movl    $0, 4(%ebx)
    addl    $0x1000, %eax
    addl    $8, %ebx
    loop    4b

    leal    0x6000(%edi), %ebx
    movl    $domu_abs_page_tables, %ecx
    shll    $9, %ecx                        # pages
    xorl    %eax, %eax                      # address
5:  leal    PTE_PRESENT + PTE_WRITABLE(%eax), %edx
    movl    %esi, 4(%ebx)
    cmpl    $domu_abs_text_start, %eax
    jb      6f
    cmpl    $domu_abs_data_start, %eax
    jae     6f
    leal    PTE_PRESENT(%eax), %edx         # read-only data
    cmpl    $domu_abs_rodata_start, %eax
    jae     6f
    movl    $0, 4(%ebx)                     # text
6:  movl    %edx, (%ebx)
    addl    $0x1000, %eax
    addl    $8, %ebx
    loop    5b

    # Absent: page 0 and the guard page of the stack.
    movl    $0, 0x6000(%edi)
    movl    $domu_abs_stack_guard, %eax
    shrl    $12, %eax
    movl    $0, 0x6000(%edi, %eax, 8)

    # Long mode, with the x87, SSE and, where there is one, extended state enabled.
    movl    $CR4_PAE_OSFXSR_OSXMMEXCPT, %eax
    btl     $CPUID1_ECX_XSAVE, 4(%esp)
    jnc     7f
    orl     $CR4_OSXSAVE, %eax
7:  movl    %eax, %cr4
    movl    %edi, %cr3
    movl    $MSR_EFER, %ecx
    movl    $EFER_LME, %eax
    testl   %esi, %esi
    jz      8f
    orl     $EFER_NXE, %eax
8:  xorl    %edx, %edx
    wrmsr
    movl    $CR0_PE_MP_ET_NE_WP_PG, %eax
    movl    %eax, %cr0

    # The descriptor of the table, built where it needs no relocation.
    pushl   $0
    pushl   $domu_abs_gdt
    pushw   $(domu_boot_gdt_end - domu_boot_gdt - 1)
    lgdt    (%esp)
    addl    $10, %esp
    pushl   $8
    pushl   $domu_abs_start64
    lretl

    # Without long mode there is no Rust either: one line on the debug port, and stop.
.Ldomu_no_long_mode:
    movl    $domu_abs_start64, %esi
    addl    $(.Ldomu_no_long_mode_text - domu_start64), %esi
    movl    $(.Ldomu_no_long_mode_end - .Ldomu_no_long_mode_text), %ecx
    movl    $DEBUG_PORT, %edx
    rep outsb
9:  hlt
    jmp     9b
    .size domu_start, . - domu_start

    .code64
    .globl domu_start64
    .type domu_start64, @function
domu_start64:
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs

    # 32-bit code pushed four-byte words, and left the upper half of RSP undefined.
    movl    %esp, %esp
    movl    (%rsp), %r12d                   # EDX of leaf 0x80000001
    movl    4(%rsp), %r13d                  # ECX of leaf 1
    movl    8(%rsp), %r14d                  # VMMCALL?
    movl    %ebp, %r15d                     # start info
    leaq    domu_stack_top(%rip), %rsp
    movb    %r14b, domu_vmmcall(%rip)

    fninit
    pushq   $MXCSR_DEFAULT
    ldmxcsr (%rsp)
    popq    %rax
    btl     $CPUID1_ECX_XSAVE, %r13d
    jnc     1f
    movl    $0xd, %eax
    xorl    %ecx, %ecx
    cpuid
    andl    $XCR0_KNOWN, %eax
    movl    %eax, %ecx
    notl    %ecx
    testl   $XCR0_X87_SSE, %ecx             # without both of them XSETBV faults
    jnz     1f
    xorl    %edx, %edx
    xorl    %ecx, %ecx
    xsetbv
1:
    # The stack protector's canary, before the first protected frame: from RDRAND, else mixed from the time stamp
    # counter. Its second byte is zero, so that no string runs over it unnoticed.
    btl     $CPUID1_ECX_RDRAND, %r13d
    jnc     3f
    movl    $16, %ecx
2:  rdrand  %rax
    jc      4f
    loop    2b
3:  rdtsc
    shlq    $32, %rdx
    orq     %rdx, %rax
    movabsq $0x9e3779b97f4a7c15, %rcx
    mulq    %rcx
    xorq    %rdx, %rax
4:  xorb    %ah, %ah
    movq    %rax, __stack_chk_guard(%rip)

    xorl    %ebp, %ebp                      # end of the chain of frames
    movl    %r15d, %edi
    movl    %r12d, %esi
    call    domu_rust_start
    ud2

.Ldomu_no_long_mode_text:
    .ascii  "domu: this CPU has no 64-bit mode, which a unikernel needs\n"
.Ldomu_no_long_mode_end:
    .size domu_start64, . - domu_start64

    .section .rodata.domu_boot, "a", @progbits
    .balign 8
    .globl domu_boot_gdt
domu_boot_gdt:
    .quad   0
    .quad   0x00af9b000000ffff              # 64-bit code
    .quad   0x00cf93000000ffff              # data
domu_boot_gdt_end:

    .section .data.domu_boot, "aw", @progbits
    .balign 8
    .globl __stack_chk_guard
__stack_chk_guard:
    .quad   0x00deadbeef0d0a00
    .globl domu_vmmcall
domu_vmmcall:
    .byte   0
    .balign 8

    # What else is assembled into the same object begins where code belongs.
    .text
