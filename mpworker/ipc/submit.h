/* mpworker.ipc._native, the part that submits tasks: for `_native.c` to include.
 *
 * Nearly every task that a client submits is a call of a function that was sent before, with arguments that make a small
 * pickle, while there is room. For these all that `mpworker.client.Client.submit` does is done here, in a third of the time,
 * for one call or for a list of them. Any other is left to Python: nothing has been taken or sent by then but perhaps a
 * number.
 *
 * What runs Python comes first: the pickle of what is not plain, the look whether a function by value is still the same, the
 * future. Other threads, signal handlers, the collector may do anything meanwhile. From the looks that follow (may anything
 * still be sent, is the function still known?) to the push no Python runs, so they hold for it.
 */

enum { MPW_KIND_SUBMIT = 5 };       /* of a record: `mpworker.ipc.codec` */
enum { MPW_SUBMITS_PER_LOOK = 64 }; /* a power of two: how often a client that only submits looks at what has come */
enum { SUBMIT_DETAILED = 0x0200 };  /* of its flags: details come before the pickle */
enum { SUBMIT_PARTS = 9 };          /* that a Submit is made of, beside numbers */
enum { SUBMIT_CALL_PARTS = 6 };     /* function, args, kwargs, options, details, make */
enum { SUBMIT_GUARD, SUBMIT_HOLDS, SUBMIT_KEY, SUBMIT_CLOSED, SUBMIT_LAST_KEY, SUBMIT_SUBMIT, SUBMIT_NAMES };
static const char *const submit_names[SUBMIT_NAMES] = {"guard", "holds", "key", "_closed", "_last_key", "_submit"};

typedef struct {
    PyObject_HEAD
    ring_object *outbound;
    ring_object *inbound;
    bell_object *peer_bell;
    PyObject *entries; /* dict: of functions by their `id`; see `mpworker.functions` */
    PyObject *live;    /* dict: names by the keys of functions that may be sent */
    PyObject *pending; /* dict: futures by their keys */
    PyObject *keys;    /* iterator */
    PyObject *dumps;   /* (args, kwargs) -> bytes, or something else that is no record's */
    PyObject *kept;    /* dict: by their keys the records of tasks, for who may have to send them again; None for no need */
    Py_ssize_t pending_max;
    Py_ssize_t record_max; /* bytes of a payload */
    uint64_t look_at;      /* bytes in `inbound` that are worth a look */
    unsigned sent;         /* calls, one by one */
    PyObject *names[SUBMIT_NAMES];    /* of attributes: a string made for each look-up would cost as much as that */
} submit_object;

static PyObject *submit_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *parts[SUBMIT_PARTS];
    Py_ssize_t pending_max, record_max, look_at;
    if (!PyArg_ParseTuple(args, "OOOO!O!O!OOOnnn:Submit", &parts[0], &parts[1], &parts[2], &PyDict_Type, &parts[3],
                          &PyDict_Type, &parts[4], &PyDict_Type, &parts[5], &parts[6], &parts[7], &parts[8], &pending_max,
                          &record_max, &look_at))
        return NULL;
    module_state *state = PyType_GetModuleState(type);
    if (Py_TYPE(parts[0]) != state->ring_type || Py_TYPE(parts[1]) != state->ring_type ||
        Py_TYPE(parts[2]) != state->bell_type || !PyIter_Check(parts[6]) ||
        !(parts[8] == Py_None || PyDict_Check(parts[8]))) {
        PyErr_SetString(PyExc_TypeError, "Submit() takes two Rings, a Bell, three dicts, an iterator and a dict or None");
        return NULL;
    }
    submit_object *submit = (submit_object *)object_new(type);
    if (!submit)
        return NULL;
    PyObject **fields[SUBMIT_PARTS] = {(PyObject **)&submit->outbound, (PyObject **)&submit->inbound,
                                       (PyObject **)&submit->peer_bell, &submit->entries, &submit->live, &submit->pending,
                                       &submit->keys, &submit->dumps, &submit->kept};
    for (int i = 0; i < SUBMIT_PARTS; i++) {
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
    submit_object *submit = (submit_object *)self;
    PyObject *parts[SUBMIT_PARTS] = {(PyObject *)submit->outbound, (PyObject *)submit->inbound,
                                     (PyObject *)submit->peer_bell, submit->entries, submit->live, submit->pending,
                                     submit->keys, submit->dumps, submit->kept};
    for (int i = 0; i < SUBMIT_PARTS; i++)
        Py_XDECREF(parts[i]);
    for (int i = 0; i < SUBMIT_NAMES; i++)
        Py_XDECREF(submit->names[i]);
    object_free(self);
}

/* The key of a function that was sent, and holds for a call that is sent now: a new reference. NULL, perhaps with an error:
 * it is not one of these. */
static PyObject *submit_function(submit_object *submit, PyObject *function)
{
    PyObject *identity = PyLong_FromVoidPtr(function);
    PyObject *entry = identity ? PyDict_GetItemWithError(submit->entries, identity) : NULL;
    Py_XDECREF(identity);
    if (!entry)
        return NULL;
    Py_INCREF(entry);
    PyObject *guard = PyObject_GetAttr(entry, submit->names[SUBMIT_GUARD]);
    PyObject *holds = !guard             ? NULL
                      : guard == Py_None ? PyBool_FromLong(1)
                                         : PyObject_CallMethodObjArgs(guard, submit->names[SUBMIT_HOLDS], NULL);
    PyObject *key = holds == Py_True ? PyObject_GetAttr(entry, submit->names[SUBMIT_KEY]) : NULL;
    Py_XDECREF(holds);
    Py_XDECREF(guard);
    Py_DECREF(entry);
    return key;
}

/* A call on its way into a record: its details, and then a pickle of (args, kwargs). */
typedef struct {
    PyObject *details;
    PyObject *args, *kwargs; /* plain ones, which are written where the record lies */
    PyObject *pickle;        /* else the pickle, with the details, of which this is the reference */
} submit_call;

/* Bytes of its payload; less than 0 if it is no record's. Nothing here runs Python code. */
static Py_ssize_t submit_size(submit_object *submit, const submit_call *call)
{
    if (call->pickle)
        return PyBytes_Size(call->pickle);
    plain_writer writer = {.size = sizeof plain_protocol + 2};
    Py_ssize_t before = PyBytes_Size(call->details);
    Py_ssize_t plain_max = submit->record_max < MPW_PLAIN_BYTES_MAX ? submit->record_max : MPW_PLAIN_BYTES_MAX;
    bool is_plain = plain_write(&writer, call->args, 1) && plain_write(&writer, call->kwargs, 1);
    return is_plain && writer.size <= plain_max - before ? before + writer.size : -1;
}

/* Write its payload, of the size that submit_size has said just now. */
static void submit_write(const submit_call *call, uint8_t *at)
{
    if (call->pickle) {
        memcpy(at, PyBytes_AsString(call->pickle), (size_t)PyBytes_Size(call->pickle));
        return;
    }
    plain_writer writer = {.at = at};
    plain_put(&writer, PyBytes_AsString(call->details), (size_t)PyBytes_Size(call->details));
    plain_put(&writer, plain_protocol, sizeof plain_protocol);
    plain_write(&writer, call->args, 1);
    plain_write(&writer, call->kwargs, 1);
    plain_put(&writer, "\x86.", 2); /* TUPLE2, STOP */
}

/* Have a call that is not plain pickled; false, perhaps with an error, if it is no record's: then `left` is its pickle,
 * without the details. */
static bool submit_pickle(submit_object *submit, submit_call *call, PyObject **left)
{
    PyObject *both = Py_BuildValue("(OO)", call->args, call->kwargs);
    PyObject *pickle = both ? PyObject_CallFunctionObjArgs(submit->dumps, both, NULL) : NULL;
    Py_ssize_t before = PyBytes_Size(call->details);
    Py_XDECREF(both);
    if (!pickle || !PyBytes_CheckExact(pickle) || PyBytes_Size(pickle) > submit->record_max - before) {
        *left = pickle;
        return false;
    }
    if (before) {
        PyObject *whole = PyBytes_FromObject(call->details);
        PyBytes_Concat(&whole, pickle); /* no whole, no concatenation */
        Py_DECREF(pickle);
        pickle = whole;
    }
    call->pickle = pickle;
    return pickle != NULL;
}

/* May something be sent, and a call of this function, and is there still room for a task? No Python runs in here, and none
 * until the push. */
static bool submit_may(submit_object *submit, PyObject *client, PyObject *function_key)
{
    PyObject *closed = PyObject_GetAttr(client, submit->names[SUBMIT_CLOSED]);
    bool open = closed && PyUnicode_Check(closed) && !PyUnicode_GetLength(closed);
    Py_XDECREF(closed);
    if (open && submit->kept != Py_None) { /* else there is no other supervisor that it could have by now */
        PyObject *now = PyObject_GetAttr(client, submit->names[SUBMIT_SUBMIT]);
        open = now == (PyObject *)submit;
        Py_XDECREF(now);
    }
    return open && PyDict_Size(submit->pending) < submit->pending_max &&
           PyDict_GetItemWithError(submit->live, function_key) && ring_usable((PyObject *)submit->outbound);
}

/* Note the number of a task that was sent, if it is the highest: another thread may have been faster. No Python runs in here. */
static bool submit_noted(submit_object *submit, PyObject *client, PyObject *key)
{
    PyObject *last = PyObject_GetAttr(client, submit->names[SUBMIT_LAST_KEY]);
    int higher = last ? PyObject_RichCompareBool(key, last, Py_GT) : -1;
    Py_XDECREF(last);
    return higher > 0 ? PyObject_SetAttr(client, submit->names[SUBMIT_LAST_KEY], key) == 0 : higher == 0;
}

/* Keep the record that is about to be published, for who may have to send it again; false with an error. No Python runs in
 * here. */
static bool submit_keep(submit_object *submit, PyObject *key, const mpw_record_header *header, const uint8_t *payload)
{
    if (submit->kept == Py_None)
        return true;
    PyObject *record = Py_BuildValue("(iiOKKy#)", (int)header->kind, (int)header->flags, key, (unsigned long long)header->b,
                                     (unsigned long long)header->c, (const char *)payload, (Py_ssize_t)header->size);
    bool done = record && PyDict_SetItem(submit->kept, key, record) == 0;
    Py_XDECREF(record);
    return done;
}

/* Make the future of a call and push it: the future, or NULL, perhaps with an error, if it was not sent. */
static PyObject *submit_push(submit_object *submit, PyObject *client, PyObject *function_key, uint64_t options,
                             const submit_call *call, PyObject *make)
{
    uint64_t function, number;
    PyObject *name = PyDict_GetItemWithError(submit->live, function_key);
    if (!name || !get_u64(function_key, &function))
        return NULL;
    Py_INCREF(name);
    PyObject *key = PyIter_Next(submit->keys);
    PyObject *future = key && get_u64(key, &number) ? PyObject_CallFunctionObjArgs(make, client, key, name, NULL) : NULL;
    Py_DECREF(name);
    mpw_status status = MPW_FULL;
    if (future && submit_may(submit, client, function_key) && PyDict_SetItem(submit->pending, key, future) == 0) {
        mpw_ring *ring = &submit->outbound->ring;
        uint8_t *at;
        Py_ssize_t size = submit_size(submit, call); /* now: the dict may have been changed meanwhile */
        mpw_record_header header = {.size = (uint32_t)size, .kind = MPW_KIND_SUBMIT, .a = number, .b = function, .c = options,
                                    .flags = PyBytes_Size(call->details) ? SUBMIT_DETAILED : 0};
        if (size >= 0 && (status = mpw_ring_begin(ring, header, &at)) == MPW_OK) {
            submit_write(call, at);
            if (submit_keep(submit, key, &header, at))
                mpw_ring_publish(ring, (uint64_t)size); /* else it was begun, and is not there */
            else
                status = MPW_TOO_LARGE;
        }
        if (status != MPW_OK) {
            PyObject *type, *value, *trace;
            PyErr_Fetch(&type, &value, &trace);
            if (PyDict_DelItem(submit->pending, key) == 0 && status == MPW_CORRUPT)
                ring_condemn((PyObject *)submit->outbound);
            else if (type)
                PyErr_Restore(type, value, trace);
        }
    }
    if (status != MPW_OK || !submit_noted(submit, client, key))
        Py_CLEAR(future);
    Py_XDECREF(key);
    return future;
}

/* After some pushes: wake the supervisor; and if it looks, read what has come if that is much. */
static bool submit_told(submit_object *submit, PyObject *client, bool looks)
{
    PyObject *done = bell_ring((PyObject *)submit->peer_bell, NULL);
    if (done && looks && mpw_ring_fill(&submit->inbound->ring) > submit->look_at) {
        Py_DECREF(done);
        done = PyObject_CallMethod(client, "poll", NULL);
    }
    Py_XDECREF(done);
    return done != NULL;
}

/* Is this no fork of the process that the rings are of? */
static bool submit_is_here(submit_object *submit)
{
    return ((mapped_object *)submit->outbound)->fork_count == fork_count;
}

/* Is there room for one more task, and are the rings there? */
static bool submit_has_room(submit_object *submit)
{
    return submit_is_here(submit) && PyDict_Size(submit->pending) < submit->pending_max;
}

/* Send a call; its future, or NULL, perhaps with an error, if it was not sent. `left` is its pickle, if that is why. */
static PyObject *submit_one(submit_object *submit, PyObject *client, PyObject *const *call, PyObject *function_key,
                            PyObject **left)
{
    uint64_t options;
    PyObject *args = call[1], *kwargs = call[2], *details = call[4], *make = call[5], *future = NULL;
    if (!PyTuple_CheckExact(args) || !PyDict_CheckExact(kwargs) || !PyBytes_CheckExact(details)) {
        PyErr_SetString(PyExc_TypeError, "a call has a tuple, a dict, and details that are bytes");
        return NULL;
    }
    if (!get_u64(call[3], &options))
        return NULL;
    submit_call sent = {.details = details, .args = args, .kwargs = kwargs};
    if (submit_size(submit, &sent) >= 0 || submit_pickle(submit, &sent, left))
        future = submit_push(submit, client, function_key, options, &sent, make);
    Py_XDECREF(sent.pickle);
    return future;
}

static PyObject *submit_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    submit_object *submit = (submit_object *)self;
    if (!argument_count(nargs, 1 + SUBMIT_CALL_PARTS, "submit"))
        return NULL;
    PyObject *client = args[0], *left = NULL, *future = NULL;
    PyObject *function_key = submit_has_room(submit) ? submit_function(submit, args[1]) : NULL;
    if (function_key) {
        future = submit_one(submit, client, args + 1, function_key, &left);
        Py_DECREF(function_key);
    }
    if (future && !submit_told(submit, client, !(++submit->sent % MPW_SUBMITS_PER_LOOK)))
        Py_CLEAR(future); /* an error, or what a handler has raised: the task is sent */
    if (future || PyErr_Occurred())
        return future;
    return left ? left : none();
}

static PyObject *submit_submit_all(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    submit_object *submit = (submit_object *)self;
    if (!argument_count(nargs, 3, "submit_all"))
        return NULL;
    PyObject *client = args[0], *calls = args[1], *futures = args[2], *left = NULL;
    if (!PyList_Check(calls) || !PyList_Check(futures)) {
        PyErr_SetString(PyExc_TypeError, "submit_all() takes a list of calls and a list for their futures");
        return NULL;
    }
    PyObject *function = NULL, *function_key = NULL; /* of the call before */
    Py_ssize_t before = PyList_Size(futures);
    bool well = true;
    while (well && PyList_Size(futures) < PyList_Size(calls) && submit_has_room(submit)) {
        PyObject *call = PyList_GetItem(calls, PyList_Size(futures)), *parts[SUBMIT_CALL_PARTS];
        if (!PyTuple_Check(call)) {
            PyErr_SetString(PyExc_TypeError, "a call is a tuple");
            break;
        }
        if (!PyArg_ParseTuple(call, "OOOOOO", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &parts[5]))
            break;
        if (parts[0] != function) {
            Py_XDECREF(function_key);
            function = parts[0];
            function_key = submit_function(submit, function);
        }
        PyObject *future = function_key ? submit_one(submit, client, parts, function_key, &left) : NULL;
        well = future && PyList_Append(futures, future) == 0 &&
               (PyList_Size(futures) % MPW_SUBMITS_PER_LOOK || submit_told(submit, client, true));
        Py_XDECREF(future);
    }
    Py_XDECREF(function_key);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace); /* what was sent before is told of in any case, but by a fork */
    bool told = PyList_Size(futures) == before || !submit_is_here(submit) || submit_told(submit, client, false);
    if (type)
        PyErr_Restore(type, value, trace);
    if (!told || PyErr_Occurred()) {
        Py_XDECREF(left);
        return NULL;
    }
    return left ? left : none();
}

static PyMethodDef submit_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))submit_submit, METH_FASTCALL,
     "submit(client, function, args, kwargs, options, details, make) -> future, None or payload\n\nSend a call, and return "
     "the future that make(client, key, name) has made. None: it is to be sent otherwise, and as this payload if its pickle "
     "is what stands against it."},
    {"submit_all", (PyCFunction)(void (*)(void))submit_submit_all, METH_FASTCALL,
     "submit_all(client, calls, futures) -> None or payload\n\nSend of a list of calls (function, args, kwargs, options, "
     "details, make) those that have no future yet, up to the first that is to be sent otherwise: as this payload, if its "
     "pickle is what stands against it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot submit_slots[] = {
    {Py_tp_doc, "Submit(outbound, inbound, peer_bell, entries, live, pending, keys, dumps, kept, pending_max, record_max, "
                "look_at)\n\n"
                "Submits tasks for a client: see submit.h."},
    {Py_tp_new, submit_new},
    {Py_tp_dealloc, submit_dealloc},
    {Py_tp_methods, submit_methods},
    {0, NULL},
};

static PyType_Spec submit_spec = {"mpworker.ipc._native.Submit", sizeof(submit_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, submit_slots};
