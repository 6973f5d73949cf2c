# From the PVH entry point, 32-bit protected mode without paging, to Rust in 64-bit mode.
#
# Assumed is what the boot protocol promises (Xen, docs/misc/pvh.pandoc) and nothing more: EBX points to the start
# info, CS, DS, ES and SS are flat, paging and interrupts are off. There is no stack; the direction flag, all other
# registers, the FPU and the extended state are undefined. Memory protection is in force from the first 64-bit
# instruction on: text R-X, read-only data R--, everything else below 4 GiB RW-NX, page 0 and the page below each stack
# absent.
#
# EBP keeps the start info until 64-bit mode. What CPUID says is kept for all time in domu_cpu (`arch::Cpu`), since each
# CPUID instruction costs an exit.

    .set DOMU_CR0_PE_MP_ET_NE_WP_PG, 0x80010033
    .set DOMU_CR4_PAE_OSFXSR_OSXMMEXCPT, 0x620
    .set DOMU_CR4_OSXSAVE, 0x40000
    .set DOMU_MSR_EFER, 0xc0000080
    .set DOMU_EFER_LME, 0x100
    .set DOMU_EFER_NXE, 0x800
    .set DOMU_CPUID1_ECX_XSAVE, 26
    .set DOMU_CPUID1_ECX_RDRAND, 30
    .set DOMU_CPUID7_EBX_RDSEED, 18
    .set DOMU_CPUID81_EDX_NX, 20
    .set DOMU_CPUID81_EDX_LONG_MODE, 29
    .set DOMU_XCR0_KNOWN, 0xe7              # x87, SSE, AVX, AVX-512
    .set DOMU_MXCSR_DEFAULT, 0x1f80
    .set DOMU_XCR0_X87_SSE, 3
    .set DOMU_DEBUG_PORT, 0xe9

    .set DOMU_PTE_PRESENT, 1
    .set DOMU_PTE_WRITABLE, 2
    .set DOMU_PTE_HUGE, 0x80
    .set DOMU_PTE_NX_HIGH, 0x80000000

    # Offsets in domu_cpu.
    .set DOMU_CPU_LEAF1_ECX, 0
    .set DOMU_CPU_LEAF1_EDX, 4
    .set DOMU_CPU_LEAF7_EBX, 8
    .set DOMU_CPU_LEAF7_ECX, 12
    .set DOMU_CPU_EXTENDED_EDX, 16
    .set DOMU_CPU_VMMCALL, 20
    .set DOMU_CPU_RANDOM_CANARY, 24
    .set DOMU_CPU_SIZE, 40
    .set DOMU_CPU_ENTRY_TSC, 32

    # Of the linker script; see `boot/symbols.S` for why they are weak.
    .weak domu_abs_stack_top, domu_abs_bss_start, domu_abs_bss_size, domu_abs_cpu, domu_abs_pml4, domu_abs_page_tables
    .weak domu_abs_text_start, domu_abs_data_start, domu_abs_rodata_start, domu_abs_stack_guard, domu_abs_trap_stacks
    .weak domu_abs_trap_stack_pages, domu_abs_gdt, domu_abs_start64, domu_stack_top

    .section .text.domu_start, "ax", @progbits
    .code32
    .globl domu_start
    .type domu_start, @function
domu_start:
    cld
    cli
    movl    %ebx, %ebp
    movl    $domu_abs_stack_top, %esp
    pushl   $2                              # no trap, nested-task or alignment flag is left from before
    popfl

    rdtsc
    movl    %eax, %ebx
    movl    %edx, %esi

    # The loader clears what the file does not hold; not every one is trusted to, and it is short.
    xorl    %eax, %eax
    movl    $domu_abs_bss_start, %edi
    movl    $domu_abs_bss_size, %ecx
    shrl    $2, %ecx
    rep stosl

    movl    %ebx, domu_abs_cpu + DOMU_CPU_ENTRY_TSC
    movl    %esi, domu_abs_cpu + DOMU_CPU_ENTRY_TSC + 4

    # Vendor: AMD and Hygon take VMMCALL, all others VMCALL.
    xorl    %eax, %eax
    cpuid
    movl    %eax, %esi                      # the highest leaf
    xorl    %eax, %eax
    cmpl    $0x68747541, %ebx               # "Auth"enticAMD
    sete    %al
    cmpl    $0x6f677948, %ebx               # "Hygo"nGenuine
    sete    %dl
    orb     %dl, %al
    movl    %eax, domu_abs_cpu + DOMU_CPU_VMMCALL

    movl    $1, %eax
    cpuid
    movl    %ecx, domu_abs_cpu + DOMU_CPU_LEAF1_ECX
    movl    %edx, domu_abs_cpu + DOMU_CPU_LEAF1_EDX
    cmpl    $7, %esi                        # beyond the highest leaf some CPUs answer with another one
    jb      0f
    movl    $7, %eax
    xorl    %ecx, %ecx
    cpuid
    movl    %ebx, domu_abs_cpu + DOMU_CPU_LEAF7_EBX
    movl    %ecx, domu_abs_cpu + DOMU_CPU_LEAF7_ECX
0:  movl    $0x80000001, %eax
    cpuid
    movl    %edx, domu_abs_cpu + DOMU_CPU_EXTENDED_EDX

    btl     $DOMU_CPUID81_EDX_LONG_MODE, %edx
    jnc     .Ldomu_no_long_mode

    # ESI: the high half of an entry that forbids execution, 0 on a CPU without NX.
    xorl    %esi, %esi
    btl     $DOMU_CPUID81_EDX_NX, %edx
    jnc     1f
    movl    $DOMU_PTE_NX_HIGH, %esi
1:
    # PML4 and PDPT, the only tables that are not filled entirely.
    movl    $domu_abs_pml4, %edi
    movl    $2048, %ecx
    xorl    %eax, %eax
    rep stosl
    movl    $domu_abs_pml4, %edi
    leal    0x1000 + DOMU_PTE_PRESENT + DOMU_PTE_WRITABLE(%edi), %eax
    movl    %eax, (%edi)
    leal    0x1000(%edi), %ebx              # PDPT
    leal    0x2000 + DOMU_PTE_PRESENT + DOMU_PTE_WRITABLE(%edi), %eax
    movl    $4, %ecx
2:  movl    %eax, (%ebx)
    addl    $0x1000, %eax
    addl    $8, %ebx
    loop    2b

    # Page directories: 4 GiB in 2 MiB pages, read-write and not executable.
    leal    0x2000(%edi), %ebx
    movl    $DOMU_PTE_PRESENT + DOMU_PTE_WRITABLE + DOMU_PTE_HUGE, %eax
    movl    $2048, %ecx
3:  movl    %eax, (%ebx)
    movl    %esi, 4(%ebx)
    addl    $0x200000, %eax
    addl    $8, %ebx
    loop    3b

    # The first of these pages, up to the end of the image, are 4 KiB pages instead.
    leal    0x2000(%edi), %ebx
    leal    0x6000 + DOMU_PTE_PRESENT + DOMU_PTE_WRITABLE(%edi), %eax
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
5:  leal    DOMU_PTE_PRESENT + DOMU_PTE_WRITABLE(%eax), %edx
    movl    %esi, 4(%ebx)
    cmpl    $domu_abs_text_start, %eax
    jb      6f
    cmpl    $domu_abs_data_start, %eax
    jae     6f
    leal    DOMU_PTE_PRESENT(%eax), %edx    # read-only data
    cmpl    $domu_abs_rodata_start, %eax
    jae     6f
    movl    $0, 4(%ebx)                     # text
6:  movl    %edx, (%ebx)
    addl    $0x1000, %eax
    addl    $8, %ebx
    loop    5b

    # Absent: page 0 and the guard pages below the stacks.
    movl    $0, 0x6000(%edi)
    movl    $domu_abs_stack_guard, %eax
    shrl    $12, %eax
    movl    $0, 0x6000(%edi, %eax, 8)
    movl    $domu_abs_trap_stacks, %eax
    shrl    $12, %eax
    movl    $3, %ecx
6:  movl    $0, 0x6000(%edi, %eax, 8)
    addl    $domu_abs_trap_stack_pages, %eax
    loop    6b

    # Long mode, with the x87, SSE and, where there is one, extended state enabled.
    movl    $DOMU_CR4_PAE_OSFXSR_OSXMMEXCPT, %eax
    btl     $DOMU_CPUID1_ECX_XSAVE, domu_abs_cpu + DOMU_CPU_LEAF1_ECX
    jnc     7f
    orl     $DOMU_CR4_OSXSAVE, %eax
7:  movl    %eax, %cr4
    movl    %edi, %cr3
    movl    $DOMU_MSR_EFER, %ecx
    movl    $DOMU_EFER_LME, %eax
    testl   %esi, %esi
    jz      8f
    orl     $DOMU_EFER_NXE, %eax
8:  xorl    %edx, %edx
    wrmsr
    movl    $DOMU_CR0_PE_MP_ET_NE_WP_PG, %eax
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
    movl    $DOMU_DEBUG_PORT, %edx
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
    movl    %ebp, %r15d                     # start info

    leaq    domu_stack_top(%rip), %rsp
    leaq    domu_cpu(%rip), %r12

    fninit
    pushq   $DOMU_MXCSR_DEFAULT
    ldmxcsr (%rsp)
    popq    %rax
    btl     $DOMU_CPUID1_ECX_XSAVE, DOMU_CPU_LEAF1_ECX(%r12)
    jnc     1f
    movl    $0xd, %eax
    xorl    %ecx, %ecx
    cpuid
    andl    $DOMU_XCR0_KNOWN, %eax
    movl    %eax, %ecx
    notl    %ecx
    testl   $DOMU_XCR0_X87_SSE, %ecx             # without both of them XSETBV faults
    jnz     1f
    xorl    %edx, %edx
    xorl    %ecx, %ecx
    xsetbv
1:
    # The stack protector's canary, before the first protected frame: from RDRAND or RDSEED, else mixed from the time
    # stamp counter now and at the entry, between which lie exits of some microseconds each. All zeroes or all ones is
    # what a broken generator gives. The second byte is zero, so that no string runs over it unnoticed.
    btl     $DOMU_CPUID1_ECX_RDRAND, DOMU_CPU_LEAF1_ECX(%r12)
    jnc     3f
    movl    $16, %ecx
2:  rdrand  %rax
    jc      4f
    loop    2b
3:  btl     $DOMU_CPUID7_EBX_RDSEED, DOMU_CPU_LEAF7_EBX(%r12)
    jnc     5f
    movl    $1000, %ecx
2:  rdseed  %rax
    jc      4f
    pause
    loop    2b
    jmp     5f
4:  leaq    -1(%rax), %rcx
    cmpq    $-3, %rcx                       # neither 0 nor -1
    ja      5f
    movl    $1, DOMU_CPU_RANDOM_CANARY(%r12)
    jmp     6f
5:  rdtsc
    shlq    $32, %rdx
    orq     %rdx, %rax
    rolq    $32, %rax
    xorq    DOMU_CPU_ENTRY_TSC(%r12), %rax
    movabsq $0x9e3779b97f4a7c15, %rcx
    mulq    %rcx
    xorq    %rdx, %rax
6:  xorb    %ah, %ah
    movq    %rax, __stack_chk_guard(%rip)

    xorl    %ebp, %ebp                      # end of the chain of frames
    movl    %r15d, %edi
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

    # Written by this code, and read-only as soon as the final tables are in force.
    .section .bss.domu_sealed, "aw", @nobits
    .balign 8
    .globl __stack_chk_guard
__stack_chk_guard:
    .skip   8
    .globl domu_cpu
domu_cpu:
    .skip   DOMU_CPU_SIZE

    # What else is assembled into the same object begins where code belongs.
    .text
