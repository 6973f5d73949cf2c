# Addresses and numbers of the linker script, as `arch::Linked` has them.
#
# Rust reads them here alone. Each is weak, so that a link without the script has one undefined symbol, whose name says
# what is missing, instead of one error for each of these.

    .weak domu_text_start, domu_rodata_start, domu_data_start, domu_sealed_start, domu_sealed_end
    .weak domu_trap_stacks, domu_abs_trap_stack_stride, domu_stack_guard, domu_stack_bottom, domu_stack_top
    .weak domu_small_stack_bytes, domu_boot_tables, domu_image_end
    .weak domu_build_id_start, domu_build_id_end, domu_init_array_start, domu_init_array_end

    # Writable for the linker, so that a link of a relocatable image gets as far as the assertion on that. Read-only at run time.
    .section .data.rel.ro.domu_linked, "aw", @progbits
    .balign 8
    .globl domu_linked
    .type domu_linked, @object
domu_linked:
    .quad   domu_text_start
    .quad   domu_rodata_start
    .quad   domu_data_start
    .quad   domu_sealed_start
    .quad   domu_sealed_end
    .quad   domu_trap_stacks
    .quad   domu_abs_trap_stack_stride
    .quad   domu_stack_guard
    .quad   domu_stack_bottom
    .quad   domu_stack_top
    .quad   domu_small_stack_bytes
    .quad   domu_boot_tables
    .quad   domu_image_end
    .quad   domu_build_id_start
    .quad   domu_build_id_end
    .quad   domu_init_array_start
    .quad   domu_init_array_end
.Ldomu_linked_end:
    .size domu_linked, .Ldomu_linked_end - domu_linked
    .quad   domu_needs_the_link_argument_Tdomu_ld

    # Empty: `linker/domu.ld` says what for.
    .section .data.domu_anchor, "aw", @progbits
    .section .ldata.domu_anchor, "awl", @progbits
    .section .lbss.domu_anchor, "awl", @nobits

    .text
