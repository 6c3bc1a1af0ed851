/* mpworker.ipc._native, the Claims: a child's claim page (claims.h) as Python has it: for `_native.c` to include. */

static PyObject *claims_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *buffer;
    Py_ssize_t slots, notes = 0;
    static char *names[] = {"", "", "", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|n:Claims", names, &buffer, &slots, &notes))
        return NULL;
    if (slots < 1 || slots > 256)
        return PyErr_Format(PyExc_ValueError, "a claim page has 1 to 256 slots, not %zd", slots);
    PyObject *self = mapped_new(type, buffer);
    if (!self)
        return NULL;
    claims_object *claims = (claims_object *)self;
    claims->slots = slots;
    claims->page = mapped_at(self, 0, (Py_ssize_t)(sizeof(mpw_claims) + (size_t)slots * sizeof(mpw_slot)), "a claim page");
    if (claims->page && notes)
        claims->entries = mapped_at(self, notes, slots * (Py_ssize_t)sizeof(mpw_entry), "what is offered in a claim page");
    if (!claims->page || (notes && !claims->entries))
        Py_CLEAR(self);
    return self;
}

/* The arguments (slot[, generation[, cursor]]) that all methods share. */
static mpw_slot *slot_arguments(PyObject *self, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t wanted,
                                const char *name, uint64_t *values)
{
    claims_object *claims = (claims_object *)self;
    uint64_t index;
    if (!argument_count(nargs, wanted, name) || !usable(self) || !get_u64(args[0], &index))
        return NULL;
    if (index >= (uint64_t)claims->slots)
        return (void *)PyErr_Format(PyExc_IndexError, "slot %llu of %zd", (unsigned long long)index, claims->slots);
    for (Py_ssize_t i = 1; i < wanted; i++) {
        if (!get_u64(args[i], &values[i - 1]))
            return NULL;
    }
    if (wanted > 1 && values[0] > MPW_GENERATION_MAX)
        return (void *)PyErr_Format(PyExc_ValueError, "generation %llu is over 2**62 - 1", (unsigned long long)values[0]);
    return &claims->page->slots[index];
}

/* The slot of an offer of this task (args: slot, generation, then `between` others, task, range), which is noted; NULL with an
 * error. Where the page has no notes the last two may be left out. */
static mpw_slot *offer_arguments(PyObject *self, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t between,
                                 const char *name, uint64_t *generation, uint64_t *task, uint64_t *range)
{
    claims_object *claims = (claims_object *)self;
    Py_ssize_t wanted = between + (nargs == between + 2 && !claims->entries ? 2 : 4);
    mpw_slot *slot = argument_count(nargs, wanted, name) ? slot_arguments(self, args, 2, 2, name, generation) : NULL;
    if (!slot)
        return NULL;
    if (!*generation)
        return (void *)PyErr_Format(PyExc_ValueError, "generation 0 stands for none");
    *task = *range = 0;
    if (wanted == between + 4 && !(get_u64(args[nargs - 2], task) && get_u64(args[nargs - 1], range)))
        return NULL;
    return slot;
}

static void note_and_offer(PyObject *self, mpw_slot *slot, uint64_t generation, uint64_t task, uint64_t range)
{
    claims_object *claims = (claims_object *)self;
    if (claims->entries)
        mpw_claim_note(&claims->entries[slot - claims->page->slots], generation, task, range);
    mpw_claim_offer(slot, generation);
}

static PyObject *claims_offer(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation, task, range;
    mpw_slot *slot = offer_arguments(self, args, nargs, 0, "offer", &generation, &task, &range);
    if (!slot)
        return NULL;
    note_and_offer(self, slot, generation, task, range);
    return none();
}

static PyObject *claims_send_offer(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation, task, range;
    mpw_record_header header;
    Py_buffer payload;
    mpw_slot *slot = offer_arguments(self, args, nargs, 6, "send_offer", &generation, &task, &range);
    if (!slot)
        return NULL;
    PyObject *ring = args[2];
    if (Py_TYPE(ring) != state_of(self)->ring_type)
        return PyErr_Format(PyExc_ValueError, "an offer goes into a Ring");
    if (!ring_usable(ring) || !get_u64(args[5], &header.a) || !get_u64(args[6], &header.c) ||
        !record_arguments(args[3], args[4], args[7], &header, &payload))
        return NULL;
    header.b = generation;
    note_and_offer(self, slot, generation, task, range); /* first: whoever finds the record may claim it at once */
    mpw_status status = push_view(&((ring_object *)ring)->ring, &header, &payload);
    return status == MPW_CORRUPT ? ring_condemn(ring) : PyBool_FromLong(status == MPW_OK);
}

static PyObject *claims_claim(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "claim", &generation);
    if (!slot)
        return NULL;
    uint64_t now = mpw_now_ns();
    return PyLong_FromUnsignedLongLong(mpw_claim_take(slot, generation, now) ? now : 0);
}

static PyObject *claims_revoke(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "revoke", &generation);
    return slot ? PyBool_FromLong(mpw_claim_revoke(slot, generation)) : NULL;
}

static PyObject *claims_halt(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "halt", &generation);
    if (!slot)
        return NULL;
    return PyLong_FromUnsignedLongLong(mpw_claim_halt(slot, generation));
}

/* An iterator each of whose steps calls the function with another item: map's, which calls it with less ado than the limited
 * API can. It holds the item while the call lasts, which may get hold of the list. */
static PyObject *calls_of(PyObject *call, PyObject *items, uint64_t index, bool spread)
{
    PyObject *module = PyImport_ImportModule(spread ? "itertools" : "builtins");
    PyObject *kind = module ? PyObject_GetAttrString(module, spread ? "starmap" : "map") : NULL;
    PyObject *left = kind ? PyObject_GetIter(items) : NULL, *calls = NULL;
    Py_XDECREF(module);
    PyObject *placed = left && index ? PyObject_CallMethod(left, "__setstate__", "K", (unsigned long long)index) : none();
    if (left && placed)
        calls = PyObject_CallFunctionObjArgs(kind, call, left, NULL);
    Py_XDECREF(left);
    Py_XDECREF(kind);
    Py_XDECREF(placed);
    return calls;
}

/* One item; NULL with the exception that it raised. `inside` says afterwards, too, that it was the item that did. */
static PyObject *run_item(claims_object *claims, PyObject *calls, iternextfunc next)
{
    claims->inside = true;
    PyObject *value = next(calls);
    /* As between two byte codes: of a function in C nobody else would look. Whatever a handler raises is the item's. */
    if (value && PyErr_CheckSignals() < 0)
        Py_CLEAR(value);
    if (value)
        claims->inside = false;
    else if (!PyErr_Occurred()) { /* no call: a StopIteration that one raises is set */
        claims->inside = false;
        PyErr_SetString(PyExc_IndexError, "a call has taken items out of the list");
    }
    return value;
}

/* Call `next` of `calls` for the items up to `stop`. 1: that is done, or the chunk was halted; 0: values have waited for too
 * long; -1 with an exception. The loop is here because it costs three times as much in Python, which is more than a short call
 * does. One look at the clock for an item: it is when the item begins, give or take some microseconds, and tells whether
 * results have waited for long. */
static int run_items(PyObject *self, mpw_slot *slot, uint64_t generation, PyObject *calls, PyObject *values, uint64_t index,
                     uint64_t stop, uint64_t flush_at_ns)
{
    iternextfunc next = (iternextfunc)PyType_GetSlot(Py_TYPE(calls), Py_tp_iternext);
    bool waiting = PyList_Size(values) > 0;
    mpw_recent recent = {0};
    for (; index < stop; index++) {
        if (!usable(self)) /* the call before was a fork's */
            return -1;
        uint64_t now = mpw_recent_ns(&recent);
        if (waiting && now > flush_at_ns)
            return 0;
        if (!mpw_claim_step(slot, generation, index + 1, now))
            return 1;
        PyObject *value = run_item((claims_object *)self, calls, next);
        if (!value)
            return -1;
        int failed = PyList_Append(values, value);
        Py_DECREF(value);
        if (failed < 0)
            return -1;
        waiting = true;
    }
    return 1;
}

static PyObject *claims_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    claims_object *claims = (claims_object *)self;
    uint64_t generation, first, stop, flush_at_ns;
    if (!argument_count(nargs, 9, "run"))
        return NULL;
    mpw_slot *slot = slot_arguments(self, args, 2, 2, "run", &generation);
    PyObject *call = args[2], *items = args[3], *values = args[4];
    if (!slot || !get_u64(args[5], &first) || !get_u64(args[6], &stop) || !get_u64(args[8], &flush_at_ns))
        return NULL;
    int spread = PyObject_IsTrue(args[7]);
    if (spread < 0)
        return NULL;
    if (!PyList_Check(items) || !PyList_Check(values)) {
        PyErr_SetString(PyExc_TypeError, "run() takes a list of items and a list for their values");
        return NULL;
    }
    claims->inside = false;
    uint64_t index = first + (uint64_t)PyList_Size(values);
    PyObject *calls = calls_of(call, items, index, spread);
    if (!calls)
        return NULL;
    int over = run_items(self, slot, generation, calls, values, index, stop, flush_at_ns);
    Py_DECREF(calls);
    return over < 0 ? NULL : PyBool_FromLong(over);
}

static PyObject *claims_inside(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((claims_object *)self)->inside);
}

static PyObject *claims_peek(PyObject *self, PyObject *index)
{
    mpw_slot *slot = slot_arguments(self, &index, 1, 1, "peek", NULL);
    if (!slot)
        return NULL;
    /* acquire: pairs with the claim's acq_rel exchange and the step's release store; the start time is at least as new. */
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    uint64_t cursor = atomic_load_explicit(&slot->cursor, memory_order_acquire);
    uint64_t started = atomic_load_explicit(&slot->started_ns, memory_order_relaxed);
    uint64_t halt = atomic_load_explicit(&slot->halt, memory_order_relaxed);
    return Py_BuildValue("KiKKK", (unsigned long long)(word >> 2), (int)(word & 3), (unsigned long long)started,
                         (unsigned long long)cursor, (unsigned long long)halt);
}

static PyObject *claims_beat(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!usable(self))
        return NULL;
    return PyLong_FromUnsignedLongLong(
        atomic_load_explicit(&((claims_object *)self)->page->beat_ns, memory_order_relaxed));
}

static PyObject *claims_start_heartbeat(PyObject *self, PyObject *interval)
{
    claims_object *claims = (claims_object *)self;
    double seconds = PyFloat_AsDouble(interval);
    if (!usable(self) || (seconds == -1.0 && PyErr_Occurred()))
        return NULL;
    if (!(seconds >= 0.001 && seconds <= 3600.0)) {
        PyErr_SetString(PyExc_ValueError, "a heartbeat's interval is 0.001 to 3600 seconds");
        return NULL;
    }
    if (claims->heartbeat.beat_ns) {
        PyErr_SetString(PyExc_RuntimeError, "the heartbeat beats already");
        return NULL;
    }
    claims->heartbeat.beat_ns = &claims->page->beat_ns;
    claims->heartbeat.interval.tv_sec = (time_t)seconds;
    claims->heartbeat.interval.tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9);
    int error = mpw_heartbeat_start(&claims->heartbeat);
    if (error) {
        claims->heartbeat.beat_ns = NULL;
        return os_error(error, "start of the heartbeat's thread");
    }
    Py_INCREF(self); /* the thread writes to the page until the process ends */
    return none();
}

static PyMethodDef claims_methods[] = {
    {"offer", (PyCFunction)(void (*)(void))claims_offer, METH_FASTCALL,
     "offer(slot, generation[, task, range])\n\nSupervisor: open the slot for this generation, before its record is pushed. "
     "Where the page has notes, it is noted what is offered."},
    {"send_offer", (PyCFunction)(void (*)(void))claims_send_offer, METH_FASTCALL,
     "send_offer(slot, generation, ring, kind, flags, a, c, payload[, task, range]) -> bool\n\n"
     "Supervisor: open the slot as by offer(), and push its record, whose b is the generation. False: the ring has no room "
     "for it now, or ever, and it is to be sent otherwise; the slot is open."},
    {"claim", (PyCFunction)(void (*)(void))claims_claim, METH_FASTCALL,
     "claim(slot, generation) -> int\n\nChild: take the offer. The monotonic time in ns, or 0: it was revoked."},
    {"revoke", (PyCFunction)(void (*)(void))claims_revoke, METH_FASTCALL,
     "revoke(slot, generation) -> bool\n\nSupervisor: take the offer back. False: the child has claimed it."},
    {"run", (PyCFunction)(void (*)(void))claims_run, METH_FASTCALL,
     "run(slot, generation, call, items, values, first, stop, spread, flush_at_ns) -> bool\n\n"
     "Child: append to values, which begins with that of item first, those of the items that follow, up to stop. True: they "
     "have all been called, or the chunk was halted. False: it is later than flush_at_ns, and there are values. Raises what "
     "a call raises: that of the item which is next then, if inside says so."},
    {"halt", (PyCFunction)(void (*)(void))claims_halt, METH_FASTCALL,
     "halt(slot, generation) -> int\n\nSupervisor: no further item of this chunk (0 takes it back); the cursor since."},
    {"peek", claims_peek, METH_O, "peek(slot) -> (generation, state, started_ns, cursor, halt)"},
    {"beat", claims_beat, METH_NOARGS, "beat() -> int\n\nThe monotonic time of the child's last heartbeat in ns, 0 if none."},
    {"start_heartbeat", claims_start_heartbeat, METH_O,
     "start_heartbeat(interval_s)\n\nChild: start the thread that beats every interval seconds until the process ends."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef claims_getset[] = {
    {"inside", claims_inside, NULL, "Does run() call an item just now, or has the last one raised?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot claims_slots[] = {
    {Py_tp_doc, "Claims(buffer, slots[, notes])\n\nA child's claim page, and at `notes` bytes from its beginning, if that is "
                 "given, what is offered in each slot; see claims.h."},
    {Py_tp_new, claims_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, claims_methods},
    {Py_tp_getset, claims_getset},
    {0, NULL},
};

static PyType_Spec claims_spec = {"mpworker.ipc._native.Claims", sizeof(claims_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, claims_slots};
