/* mpworker.ipc._native, the part that submits tasks: for `_native.c` to include.
 *
 * Nearly every task that a client submits is a call of a function that was sent before, with plain arguments, while there is
 * room. For these all that `mpworker.client.Client.submit` does is done here, in a third of the time. For any other, None
 * says that it is still to be done: nothing has been taken or sent by then but perhaps a number.
 *
 * The future is made first, for that runs Python: other threads, signal handlers, the collector. From the looks that follow
 * (may anything still be sent, is the function still known?) to the push no Python runs, so they hold for it.
 */

enum { MPW_KIND_SUBMIT = 5 };       /* of a record: `mpworker.ipc.codec` */
enum { MPW_SUBMITS_PER_LOOK = 64 }; /* a power of two: how often a client that only submits looks at what has come */
enum { SUBMIT_GUARD, SUBMIT_KEY, SUBMIT_CLOSED, SUBMIT_LAST_KEY, SUBMIT_NAMES };
static const char *const submit_names[SUBMIT_NAMES] = {"guard", "key", "_closed", "_last_key"};

typedef struct {
    PyObject_HEAD
    ring_object *outbound;
    ring_object *inbound;
    bell_object *peer_bell;
    PyObject *entries; /* dict: of functions by their `id`; see `mpworker.functions` */
    PyObject *live;    /* dict: names by the keys of functions that may be sent */
    PyObject *pending; /* dict: futures by their keys */
    PyObject *keys;    /* iterator */
    Py_ssize_t pending_max;
    Py_ssize_t record_max; /* bytes of a payload */
    uint64_t look_at;      /* bytes in `inbound` that are worth a look */
    PyObject *names[SUBMIT_NAMES];    /* of attributes: a string made for each look-up would cost as much as that */
} submit_object;

static PyObject *submit_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *parts[7];
    Py_ssize_t pending_max, record_max, look_at;
    if (!PyArg_ParseTuple(args, "OOOO!O!O!Onnn:Submit", &parts[0], &parts[1], &parts[2], &PyDict_Type, &parts[3],
                          &PyDict_Type, &parts[4], &PyDict_Type, &parts[5], &parts[6], &pending_max, &record_max, &look_at))
        return NULL;
    module_state *state = PyType_GetModuleState(type);
    if (Py_TYPE(parts[0]) != state->ring_type || Py_TYPE(parts[1]) != state->ring_type ||
        Py_TYPE(parts[2]) != state->bell_type || !PyIter_Check(parts[6])) {
        PyErr_SetString(PyExc_TypeError, "Submit() takes two Rings, a Bell, three dicts and an iterator");
        return NULL;
    }
    allocfunc tp_alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    submit_object *submit = (submit_object *)tp_alloc(type, 0);
    if (!submit)
        return NULL;
    PyObject **fields[7] = {(PyObject **)&submit->outbound, (PyObject **)&submit->inbound, (PyObject **)&submit->peer_bell,
                            &submit->entries, &submit->live, &submit->pending, &submit->keys};
    for (int i = 0; i < 7; i++) {
        Py_INCREF(parts[i]);
        *fields[i] = parts[i];
    }
    for (int i = 0; i < SUBMIT_NAMES; i++) {
        if (!(submit->names[i] = PyUnicode_InternFromString(submit_names[i]))) {
            Py_DECREF(submit);
            return NULL;
        }
    }
    submit->pending_max = pending_max;
    submit->record_max = record_max;
    submit->look_at = (uint64_t)look_at;
    return (PyObject *)submit;
}

static void submit_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    submit_object *submit = (submit_object *)self;
    PyObject *parts[7] = {(PyObject *)submit->outbound, (PyObject *)submit->inbound, (PyObject *)submit->peer_bell,
                          submit->entries, submit->live, submit->pending, submit->keys};
    for (int i = 0; i < 7; i++)
        Py_XDECREF(parts[i]);
    for (int i = 0; i < SUBMIT_NAMES; i++)
        Py_XDECREF(submit->names[i]);
    freefunc tp_free = (freefunc)PyType_GetSlot(type, Py_tp_free);
    tp_free(self);
    Py_DECREF(type);
}

/* The key of a function that was sent, and may be sent for as long as its entry is there: a new reference. NULL, perhaps
 * with an error: it is not one of these. */
static PyObject *submit_function(submit_object *submit, PyObject *function)
{
    PyObject *identity = PyLong_FromVoidPtr(function);
    PyObject *entry = identity ? PyDict_GetItemWithError(submit->entries, identity) : NULL;
    Py_XDECREF(identity);
    if (!entry)
        return NULL;
    Py_INCREF(entry);
    PyObject *guard = PyObject_GetAttr(entry, submit->names[SUBMIT_GUARD]);
    PyObject *key = guard == Py_None ? PyObject_GetAttr(entry, submit->names[SUBMIT_KEY]) : NULL;
    Py_XDECREF(guard);
    Py_DECREF(entry);
    return key;
}

/* The pickle of a call; its size, 0 if it is not plain, or too large. */
static Py_ssize_t submit_pickle(PyObject *args, PyObject *kwargs, Py_ssize_t size_max, uint8_t *into)
{
    plain_writer writer = {.size = sizeof plain_protocol + 2};
    if (!plain_write(&writer, args, 1) || !plain_write(&writer, kwargs, 1) || writer.size > size_max)
        return 0;
    writer = (plain_writer){.at = into};
    plain_put(&writer, plain_protocol, sizeof plain_protocol);
    plain_write(&writer, args, 1);
    plain_write(&writer, kwargs, 1);
    plain_put(&writer, "\x86.", 2); /* TUPLE2, STOP */
    return writer.size;
}

/* May something be sent, and a call of this function? No Python runs in here, and none until the push. */
static bool submit_may(submit_object *submit, PyObject *client, PyObject *function_key)
{
    PyObject *closed = PyObject_GetAttr(client, submit->names[SUBMIT_CLOSED]);
    bool open = closed && PyUnicode_Check(closed) && !PyUnicode_GetLength(closed);
    Py_XDECREF(closed);
    return open && PyDict_GetItemWithError(submit->live, function_key) && ring_usable((PyObject *)submit->outbound);
}

static PyObject *submit_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    submit_object *submit = (submit_object *)self;
    uint64_t options, function, number;
    uint8_t pickle[MPW_PLAIN_BYTES_MAX + 64];
    if (!argument_count(nargs, 6, "submit") || !get_u64(args[4], &options))
        return NULL;
    if (((mapped_object *)submit->outbound)->fork_count != fork_count || PyDict_Size(submit->pending) >= submit->pending_max)
        return none();
    Py_ssize_t size_max = submit->record_max < MPW_PLAIN_BYTES_MAX ? submit->record_max : MPW_PLAIN_BYTES_MAX;
    Py_ssize_t size = submit_pickle(args[2], args[3], size_max, pickle);
    PyObject *function_key = size ? submit_function(submit, args[1]) : NULL;
    PyObject *name = function_key ? PyDict_GetItemWithError(submit->live, function_key) : NULL;
    if (!name || !get_u64(function_key, &function)) {
        Py_XDECREF(function_key);
        return PyErr_Occurred() ? NULL : none();
    }
    Py_INCREF(name);
    PyObject *key = PyIter_Next(submit->keys);
    PyObject *future = key && get_u64(key, &number) ? PyObject_CallFunctionObjArgs(args[5], args[0], key, name, NULL) : NULL;
    mpw_status status = MPW_FULL;
    if (future && submit_may(submit, args[0], function_key) && PyDict_SetItem(submit->pending, key, future) == 0) {
        mpw_record_header header = {.size = (uint32_t)size, .kind = MPW_KIND_SUBMIT, .a = number, .b = function, .c = options};
        status = mpw_ring_push(&submit->outbound->ring, header, pickle);
        if (status != MPW_OK && PyDict_DelItem(submit->pending, key) == 0 && status == MPW_CORRUPT)
            ring_condemn((PyObject *)submit->outbound);
    }
    if (status == MPW_OK) {
        PyObject *rung = NULL;
        if (PyObject_SetAttr(args[0], submit->names[SUBMIT_LAST_KEY], key) == 0)
            rung = bell_ring((PyObject *)submit->peer_bell, NULL);
        if (rung && !(number & (MPW_SUBMITS_PER_LOOK - 1)) && mpw_ring_fill(&submit->inbound->ring) > submit->look_at) {
            Py_DECREF(rung);
            rung = PyObject_CallMethod(args[0], "poll", NULL);
        }
        Py_XDECREF(rung);
    }
    Py_DECREF(function_key);
    Py_DECREF(name);
    Py_XDECREF(key);
    if (status == MPW_OK && !PyErr_Occurred())
        return future;
    Py_XDECREF(future);
    return PyErr_Occurred() ? NULL : none();
}

static PyMethodDef submit_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))submit_submit, METH_FASTCALL,
     "submit(client, function, args, kwargs, options, make) -> future or None\n\nSend a call that is as most are, and return "
     "the future that make(client, key, name) has made. None: it is to be sent otherwise."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot submit_slots[] = {
    {Py_tp_doc, "Submit(outbound, inbound, peer_bell, entries, live, pending, keys, pending_max, record_max, look_at)\n\n"
                "Submits tasks for a client: see submit.h."},
    {Py_tp_new, submit_new},
    {Py_tp_dealloc, submit_dealloc},
    {Py_tp_methods, submit_methods},
    {0, NULL},
};

static PyType_Spec submit_spec = {"mpworker.ipc._native.Submit", sizeof(submit_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, submit_slots};
