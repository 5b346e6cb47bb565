/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Never loaded: it exists so that every type of mesh.h, enums included, is in one object's BTF for layout.gen.ts. */
#include "maps.h"

const volatile enum slot_phase phase;
const volatile enum settings_flag settings_flag;
const volatile enum port_flag port_flag;
const volatile enum frontend_flag frontend_flag;
const volatile enum hashed_by hashed_by;
const volatile enum flow_kind flow_kind;
const volatile enum backend_state backend_state;
const volatile enum delivery delivery;
const volatile enum return_path return_path;
const volatile enum local_flag local_flag;
const volatile enum node_flag node_flag;
const volatile enum network_flag network_flag;
const volatile enum overlay_flag overlay_flag;
const volatile enum revnat_state revnat_state;
const volatile enum vip_flag vip_flag;
const volatile enum program program;
const volatile enum verdict verdict;
const volatile struct event event;
const volatile struct held held_head;
const volatile struct transition transition;
