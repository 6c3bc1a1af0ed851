/* mpworker.ipc._native, the Ring: an end of a ring (ring.h) as Python has it: for `_native.c` to include. */

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *buffer;
    Py_ssize_t ctl_offset, data_offset, capacity;
    static char *names[] = {"", "", "", "", NULL}; /* positional only */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnn:Ring", names, &buffer, &ctl_offset, &data_offset, &capacity))
        return NULL;
    if (capacity < 0 || !mpw_ring_capacity_ok((uint64_t)capacity))
        return PyErr_Format(PyExc_ValueError, "ring capacity %zd is not a power of two from %u to %u bytes", capacity,
                            MPW_RING_MIN_CAPACITY, MPW_RING_MAX_CAPACITY);
    PyObject *self = mapped_new(type, buffer);
    if (!self)
        return NULL;
    void *ctl = mapped_at(self, ctl_offset, sizeof(mpw_ring_ctl), "a ring's control block");
    void *data = ctl ? mapped_at(self, data_offset, capacity, "a ring") : NULL;
    if (!data) {
        Py_DECREF(self);
        return NULL;
    }
    mpw_ring_attach(&((ring_object *)self)->ring, ctl, data, (uint64_t)capacity);
    return self;
}

static PyObject *ring_condemn(PyObject *self)
{
    ring_object *object = (ring_object *)self;
    object->corrupt = true; /* for good: after one impossible value no other means anything */
    return PyErr_Format(state_of(self)->ring_corrupt,
                        "the peer wrote an impossible value into the ring (capacity %llu, position %llu)",
                        (unsigned long long)object->ring.capacity, (unsigned long long)object->ring.own);
}

static bool ring_usable(PyObject *self)
{
    if (!usable(self))
        return false;
    if (!((ring_object *)self)->corrupt)
        return true;
    ring_condemn(self);
    return false;
}

/* The kind, flags and size of a record from its arguments, and a view of its payload, which the caller releases. */
static bool record_arguments(PyObject *kind, PyObject *flags, PyObject *payload, mpw_record_header *header, Py_buffer *view)
{
    uint64_t kind_number, flag_bits;
    if (!get_u64(kind, &kind_number) || !get_u64(flags, &flag_bits))
        return false;
    if (kind_number > UINT16_MAX || flag_bits > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "kind and flags are 16-bit numbers");
        return false;
    }
    header->kind = (uint16_t)kind_number;
    header->flags = (uint16_t)flag_bits;
    return PyObject_GetBuffer(payload, view, PyBUF_SIMPLE) == 0;
}

/* Push a record with this payload, and release that. */
static mpw_status push_view(mpw_ring *ring, mpw_record_header *header, Py_buffer *view)
{
    mpw_status status = MPW_TOO_LARGE;
    if ((uint64_t)view->len <= mpw_ring_max_payload(ring->capacity)) {
        header->size = (uint32_t)view->len;
        status = mpw_ring_push(ring, *header, view->buf);
    }
    PyBuffer_Release(view);
    return status;
}

static PyObject *ring_push(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    mpw_ring *ring = &((ring_object *)self)->ring;
    mpw_record_header header;
    Py_buffer payload;
    if (!argument_count(nargs, 6, "push") || !ring_usable(self) || !get_u64(args[2], &header.a) ||
        !get_u64(args[3], &header.b) || !get_u64(args[4], &header.c) ||
        !record_arguments(args[0], args[1], args[5], &header, &payload))
        return NULL;
    Py_ssize_t size = payload.len;
    switch (push_view(ring, &header, &payload)) {
    case MPW_OK:
        return PyBool_FromLong(1);
    case MPW_FULL:
        return PyBool_FromLong(0);
    case MPW_TOO_LARGE:
        return PyErr_Format(PyExc_ValueError, "a payload of %zd bytes exceeds this ring's bound of %llu", size,
                            (unsigned long long)mpw_ring_max_payload(ring->capacity));
    default:
        return ring_condemn(self);
    }
}

/* Both or neither: between the two no other thread and no signal handler sees the one without the other. */
static PyObject *ring_push_keeping(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (!argument_count(nargs, 8, "push_keeping"))
        return NULL;
    PyObject *kept = args[0], *key = args[4];
    if (!PyDict_Check(kept) || !PyLong_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "push_keeping() takes a dict, and a number to keep it by");
        return NULL;
    }
    if (PyDict_SetItem(kept, key, args[1]) < 0)
        return NULL;
    PyObject *pushed = ring_push(self, args + 2, 6);
    if (pushed != Py_True) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyDict_DelItem(kept, key);
        PyErr_Restore(type, value, trace);
    }
    return pushed;
}

/* Fill an empty tuple of six; false if there is no memory. */
static bool fill_tuple(PyObject *tuple, const mpw_record *record)
{
    PyObject *items[6] = {
        PyLong_FromLong(record->header.kind),
        PyLong_FromLong(record->header.flags),
        PyLong_FromUnsignedLongLong(record->header.a),
        PyLong_FromUnsignedLongLong(record->header.b),
        PyLong_FromUnsignedLongLong(record->header.c),
        PyBytes_FromStringAndSize((const char *)record->payload, (Py_ssize_t)record->header.size),
    };
    bool whole = true;
    for (int i = 0; i < 6; i++) {
        whole = whole && items[i];
        PyTuple_SetItem(tuple, i, items[i]); /* takes the reference */
    }
    return whole;
}

static PyObject *ring_pop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ring_object *object = (ring_object *)self;
    mpw_ring *ring = &object->ring;
    uint64_t limit;
    if (!argument_count(nargs, 2, "pop") || !ring_usable(self) || !get_u64(args[1], &limit))
        return NULL;
    if (!PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "pop() appends to a list");
        return NULL;
    }
    uint64_t count = 0;
    mpw_status status = MPW_OK;
    bool failed = false;
    mpw_record record;
    while (count < limit && status == MPW_OK && !failed && mpw_ring_readable(ring)) {
        PyObject *tuple = PyTuple_New(6); /* first: a finalizer that it runs may pop from this ring too */
        mpw_ring before = *ring;
        failed = !tuple;
        status = failed ? MPW_OK : mpw_ring_next(ring, &record);
        if (!failed && status == MPW_OK) {
            failed = !fill_tuple(tuple, &record) || PyList_Append(args[0], tuple) < 0;
            if (failed)
                *ring = before; /* out of memory: the record stays in the ring */
            else
                count++;
        }
        Py_XDECREF(tuple);
    }
    object->corrupt |= status == MPW_CORRUPT; /* after whole records were handed over, the next call says so */
    if (count)
        mpw_ring_release(ring);
    if (failed)
        return NULL;
    if (object->corrupt && count == 0)
        return ring_condemn(self);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *ring_readable(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return ring_usable(self) ? PyBool_FromLong(mpw_ring_readable(&((ring_object *)self)->ring)) : NULL;
}

static PyObject *ring_fits(PyObject *self, PyObject *size)
{
    mpw_ring *ring = &((ring_object *)self)->ring;
    uint64_t payload;
    if (!ring_usable(self) || !get_u64(size, &payload))
        return NULL;
    mpw_status status =
        payload > mpw_ring_max_payload(ring->capacity) ? MPW_FULL : mpw_ring_room(ring, mpw_ring_need(ring, payload));
    if (status == MPW_CORRUPT)
        return ring_condemn(self);
    return PyBool_FromLong(status == MPW_OK);
}

static PyObject *ring_fill(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return ring_usable(self) ? PyLong_FromUnsignedLongLong(mpw_ring_fill(&((ring_object *)self)->ring)) : NULL;
}

static PyObject *ring_max_payload(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(mpw_ring_max_payload(((ring_object *)self)->ring.capacity));
}

static PyMethodDef ring_methods[] = {
    {"push", (PyCFunction)(void (*)(void))ring_push, METH_FASTCALL,
     "push(kind, flags, a, b, c, payload) -> bool\n\nPublish one record; False when the ring is full."},
    {"push_keeping", (PyCFunction)(void (*)(void))ring_push_keeping, METH_FASTCALL,
     "push_keeping(kept, value, kind, flags, a, b, c, payload) -> bool\n\nThe same, and if it is published kept[a] is the "
     "value."},
    {"pop", (PyCFunction)(void (*)(void))ring_pop, METH_FASTCALL,
     "pop(into, limit) -> int\n\nAppend up to limit records (kind, flags, a, b, c, payload) to the list; how many."},
    {"readable", ring_readable, METH_NOARGS, "readable() -> bool\n\nIs there a record to pop?"},
    {"fits", ring_fits, METH_O, "fits(payload_bytes) -> bool\n\nWould a push of this size succeed now?"},
    {"fill", ring_fill, METH_NOARGS, "fill() -> int\n\nBytes in the ring, as either end last published them."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"max_payload", ring_max_payload, NULL, "The largest payload of one record, in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring(buffer, ctl_offset, data_offset, capacity)\n\nOne end of a ring in shared memory; see ring.h."},
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

static PyType_Spec ring_spec = {"mpworker.ipc._native.Ring", sizeof(ring_object), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, ring_slots};
