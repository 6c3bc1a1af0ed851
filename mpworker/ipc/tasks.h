/* mpworker.ipc._native, the part that runs tasks: for `_native.c` to include.
 *
 * A child takes a task's record out of its ring, claims it, calls its function and answers. That is the same few steps for
 * nearly every task, and in Python they cost twenty times what a short function does. So they are here, for the tasks that
 * have nothing unusual; every other record goes to Python, and so does whatever is not plain of a task here: a call that
 * the pickle module must read, a value that it must write, an exception, an interrupt, an answer that finds no room.
 *
 * What a task may see or interrupt is an `AttemptState`, whose fields are set in the order in which `mpworker.child.task`
 * sets them. No Python runs between the return of the function and `running = 0`, so what interrupts a task always hits the
 * function, or nothing.
 *
 * The supervisor is told of an answer at once, unless the child has work for longer than a supervisor takes to wake, has
 * told it something a moment ago, and so can tell it of several answers together: to be woken for each costs it, and the
 * core that it shares with a child, more than many a task. Whoever stops running tasks here tells first what is owed; and a
 * supervisor of more than one child looks by itself at one that has more than one offer (RELIEVE_AFTER of
 * `mpworker.supervisor.dispatch`), so that an answer waits for no longer than that, whatever the next task takes. The only
 * child of a pool puts nothing off.
 *
 * Finalizers: making a tuple may collect garbage, and so run anything; none of that pops from the ring of a child, so the
 * bytes of a record stay where they are until they are released.
 */

enum { MPW_KIND_TASK = 8, MPW_KIND_DONE = 13 }; /* of a record: `mpworker.ipc.codec` */
enum { MPW_ATTEMPT_BITS = 0xFF };               /* of a TASK's flags: the number of the attempt; any other is unusual */
enum { MPW_STATUS_OK = 0 };
enum { MPW_WAKE_NS = 150000 };    /* a supervisor that is woken has offered more by then */
enum { MPW_PUT_OFF_NS = 500000 }; /* an answer waits for others for so long at the most */

typedef struct {
    PyObject_HEAD
    unsigned long long running;
    unsigned long long task;
    unsigned int slot;
    unsigned int number;
    char early;
    char itemwise;
    char orphans;
    char held_back;
    PyObject *details;
    PyObject *stack;
} attempt_object;

typedef struct {
    PyObject_HEAD
    claims_object *claims;
    attempt_object *attempt;
    ring_object *inbound;
    ring_object *outbound;
    bell_object *peer_bell;
    PyObject *received;   /* dict: the functions by their numbers */
    PyObject *loads;      /* (bytes) -> (args, kwargs) */
    PyObject *of_value;   /* (value) -> (status, payload) */
    PyObject *of_failure; /* (error), of the function */
    PyObject *of_unread;  /* (error), of `loads` */
    PyObject *push;       /* (kind, flags, a, b, c, payload), waiting for room */
    PyObject *empty;      /* b"" */
    Py_ssize_t plain_max; /* bytes of an answer that need not be looked at by `of_value` */
    uint64_t record_bytes; /* of the last task, in the ring */
    uint64_t rung_ns;      /* when the supervisor was told of an answer last */
    bool owes_ring;        /* it was not told of the last one */
    int puts_off;          /* it looks by itself at a child that has more than one offer */
} tasks_object;

/* How a task ends: its status, and its payload in one of the two. */
typedef struct {
    long status;
    PyObject *data;
    Py_ssize_t size;
    uint8_t plain[MPW_PLAIN_BYTES_MAX + 64]; /* a value is measured before it is written: what is too large is not */
} task_end;

/* ---------------------------------------------------------------- AttemptState */

static PyObject *attempt_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    attempt_object *attempt = (attempt_object *)object_new(type);
    if (attempt) {
        attempt->details = PyBytes_FromStringAndSize("", 0);
        attempt->stack = none();
    }
    return (PyObject *)attempt;
}

static void attempt_dealloc(PyObject *self)
{
    Py_XDECREF(((attempt_object *)self)->details);
    Py_XDECREF(((attempt_object *)self)->stack);
    object_free(self);
}

static PyMemberDef attempt_members[] = {
    {"running", T_ULONGLONG, offsetof(attempt_object, running), 0,
     "The generation of the task that may be interrupted now, or 0; a generation is never 0."},
    {"task", T_ULONGLONG, offsetof(attempt_object, task), 0, "Its number, and above it that of its judge."},
    {"slot", T_UINT, offsetof(attempt_object, slot), 0, "Where it is claimed."},
    {"number", T_UINT, offsetof(attempt_object, number), 0, "Of the attempt, from 1; 0 while nothing is claimed."},
    {"early", T_BOOL, offsetof(attempt_object, early), 0, "An interrupt has come while nothing ran."},
    {"itemwise", T_BOOL, offsetof(attempt_object, itemwise), 0,
     "A chunk is claimed, of which nothing runs between two items though `running` is set."},
    {"orphans", T_BOOL, offsetof(attempt_object, orphans), 0,
     "A pool that a task of this process had opened was lost: nothing more is to be run here."},
    {"held_back", T_BOOL, offsetof(attempt_object, held_back), 0,
     "Records that came before all that is in the ring are still to be done."},
    {"details", T_OBJECT_EX, offsetof(attempt_object, details), 0,
     "What it says beyond its call, and its call: read when somebody asks."},
    {"stack", T_OBJECT_EX, offsetof(attempt_object, stack), 0, "Of the task that was interrupted, until that is told."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot attempt_slots[] = {
    {Py_tp_doc, "AttemptState()\n\nWhat a child runs now, for what interrupts it and for what it asks: see tasks.h."},
    {Py_tp_new, attempt_new},
    {Py_tp_dealloc, attempt_dealloc},
    {Py_tp_members, attempt_members},
    {0, NULL},
};

static PyType_Spec attempt_spec = {"mpworker.ipc._native.AttemptState", sizeof(attempt_object), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, attempt_slots};

/* ---------------------------------------------------------------- Tasks */

static PyObject *tasks_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *parts[11];
    Py_ssize_t plain_max;
    int puts_off;
    if (!PyArg_ParseTuple(args, "OOOOOO!OOOOOnp:Tasks", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &PyDict_Type,
                          &parts[5], &parts[6], &parts[7], &parts[8], &parts[9], &parts[10], &plain_max, &puts_off))
        return NULL;
    module_state *state = PyType_GetModuleState(type);
    if (Py_TYPE(parts[0]) != state->claims_type || !PyObject_TypeCheck(parts[1], state->attempt_type) ||
        Py_TYPE(parts[2]) != state->ring_type || Py_TYPE(parts[3]) != state->ring_type ||
        Py_TYPE(parts[4]) != state->bell_type) {
        PyErr_SetString(PyExc_TypeError, "Tasks() takes Claims, an AttemptState, two Rings and a Bell");
        return NULL;
    }
    tasks_object *tasks = (tasks_object *)object_new(type);
    if (!tasks)
        return NULL;
    PyObject **fields[11] = {(PyObject **)&tasks->claims, (PyObject **)&tasks->attempt, (PyObject **)&tasks->inbound,
                             (PyObject **)&tasks->outbound, (PyObject **)&tasks->peer_bell, &tasks->received,
                             &tasks->loads, &tasks->of_value, &tasks->of_failure, &tasks->of_unread, &tasks->push};
    for (int i = 0; i < 11; i++) {
        Py_INCREF(parts[i]);
        *fields[i] = parts[i];
    }
    tasks->plain_max = plain_max < MPW_PLAIN_BYTES_MAX ? plain_max : MPW_PLAIN_BYTES_MAX;
    tasks->puts_off = puts_off;
    tasks->empty = PyBytes_FromStringAndSize("", 0);
    return (PyObject *)tasks;
}

static void tasks_dealloc(PyObject *self)
{
    tasks_object *tasks = (tasks_object *)self;
    PyObject *parts[12] = {(PyObject *)tasks->claims, (PyObject *)tasks->attempt, (PyObject *)tasks->inbound,
                           (PyObject *)tasks->outbound, (PyObject *)tasks->peer_bell, tasks->received, tasks->loads,
                           tasks->of_value, tasks->of_failure, tasks->of_unread, tasks->push, tasks->empty};
    for (int i = 0; i < 12; i++)
        Py_XDECREF(parts[i]);
    object_free(self);
}

/* The function of a record that is run here, a new reference; NULL, perhaps with an error: the record is another one, or
 * its function has not been read yet, or there is none by its number. */
static PyObject *tasks_function(tasks_object *tasks, const mpw_record_header *header)
{
    uint64_t function = header->c >> 8;
    if (header->kind != MPW_KIND_TASK || header->flags & ~MPW_ATTEMPT_BITS || !function)
        return NULL;
    PyObject *number = PyLong_FromUnsignedLongLong(function);
    PyObject *call = number ? PyDict_GetItemWithError(tasks->received, number) : NULL;
    Py_XDECREF(number);
    if (!call || PyBytes_Check(call) || PyExceptionInstance_Check(call))
        return NULL;
    Py_INCREF(call);
    return call;
}

/* The exception that is set, as an object. */
static PyObject *exception_taken(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
}

/* What Python says of a value or an exception, (status, payload), which is freed; false with an exception. */
static bool end_told(task_end *end, PyObject *teller, PyObject *what)
{
    PyObject *told = what ? PyObject_CallFunctionObjArgs(teller, what, NULL) : NULL;
    Py_XDECREF(what);
    if (!told)
        return false;
    if (!PyArg_ParseTuple(told, "lS", &end->status, &end->data)) {
        Py_DECREF(told);
        return false;
    }
    Py_INCREF(end->data);
    Py_DECREF(told);
    return true;
}

/* How a call ended that has returned this, which is freed; false with an exception. */
static bool end_of_value(tasks_object *tasks, task_end *end, PyObject *value)
{
    plain_writer writer = {.size = sizeof plain_protocol + 1};
    if (!plain_write(&writer, value, 0) || writer.size > tasks->plain_max)
        return end_told(end, tasks->of_value, value);
    end->status = MPW_STATUS_OK;
    writer = (plain_writer){.at = end->plain};
    plain_put(&writer, plain_protocol, sizeof plain_protocol);
    plain_write(&writer, value, 0);
    plain_put_op(&writer, '.'); /* STOP */
    end->size = writer.size;
    Py_DECREF(value);
    return true;
}

/* Call the function: its value, or NULL with what it raised, or what an interrupt did. */
static PyObject *tasks_called(tasks_object *tasks, PyObject *call, PyObject *args, PyObject *kwargs)
{
    attempt_object *attempt = tasks->attempt;
    if (attempt->early) { /* it came while the call was unpickled, perhaps: no time to raise anything */
        PyObject *handled = PyObject_CallMethod((PyObject *)attempt, "on_interrupt", "iO", 0, Py_None);
        if (!handled)
            return NULL;
        Py_DECREF(handled);
    }
    PyObject *value = PyObject_Call(call, args, PyDict_Size(kwargs) ? kwargs : NULL);
    /* As between two byte codes: of a function in C nobody else would look. Whatever a handler raises is the task's. */
    if (value && PyErr_CheckSignals() < 0)
        Py_CLEAR(value);
    return value;
}

/* May the supervisor hear later of an answer, to a task that took so long? What waits in the ring is taken for as long. */
static bool tasks_may_put_off(const tasks_object *tasks, uint64_t now_ns, uint64_t took_ns)
{
    uint64_t waiting = tasks->record_bytes ? mpw_ring_fill(&tasks->inbound->ring) / tasks->record_bytes : 0;
    return tasks->puts_off && waiting * took_ns > MPW_WAKE_NS && now_ns - tasks->rung_ns < MPW_PUT_OFF_NS;
}

/* Tell the supervisor of what was answered; false with an exception, also in a fork that a task has come back from. */
static bool tasks_ring(tasks_object *tasks, uint64_t now_ns)
{
    tasks->owes_ring = false;
    tasks->rung_ns = now_ns;
    PyObject *done = bell_ring((PyObject *)tasks->peer_bell, NULL);
    Py_XDECREF(done);
    return done != NULL;
}

/* Publish an answer, and wake the supervisor or put that off; false with an exception, also in a fork that the task has come
 * back from. */
static bool tasks_answered(tasks_object *tasks, task_end *end, uint64_t started, uint64_t generation, unsigned slot)
{
    uint64_t now_ns = mpw_now_ns(), took_ns = now_ns - started, c = slot | took_ns << 8;
    const char *bytes = end->data ? PyBytes_AsString(end->data) : (const char *)end->plain;
    Py_ssize_t size = end->data ? PyBytes_Size(end->data) : end->size;
    mpw_ring *ring = &tasks->outbound->ring;
    if (!ring_usable((PyObject *)tasks->outbound))
        return false;
    mpw_status status = MPW_TOO_LARGE;
    if ((uint64_t)size <= mpw_ring_max_payload(ring->capacity)) {
        mpw_record_header header = {.size = (uint32_t)size, .kind = MPW_KIND_DONE, .flags = (uint16_t)end->status,
                                    .a = started, .b = generation, .c = c};
        status = mpw_ring_push(ring, header, bytes);
    }
    if (status == MPW_CORRUPT)
        return ring_condemn((PyObject *)tasks->outbound) != NULL;
    if (status == MPW_OK) {
        tasks->owes_ring = tasks_may_put_off(tasks, now_ns, took_ns);
        return tasks->owes_ring || tasks_ring(tasks, now_ns);
    }
    PyObject *done = PyObject_CallFunction(tasks->push, "ilKKKy#", MPW_KIND_DONE, end->status, (unsigned long long)started,
                                           (unsigned long long)generation, (unsigned long long)c, bytes, size);
    Py_XDECREF(done);
    return done != NULL;
}

/* Run a task that is claimed, and answer; false with an exception if this process cannot go on. It takes `loaded`, which is
 * NULL where Python must read the call, which then is `data`. */
static bool tasks_do(tasks_object *tasks, const mpw_record_header *header, PyObject *call, PyObject *loaded, PyObject *data,
                     uint64_t started)
{
    attempt_object *attempt = tasks->attempt;
    unsigned slot = header->c & 0xFF;
    task_end end;
    end.data = NULL;
    bool told;
    attempt->number = header->flags;
    attempt->task = header->a;
    if (attempt->details != tasks->empty) {
        PyObject *before = attempt->details;
        Py_INCREF(tasks->empty);
        attempt->details = tasks->empty;
        Py_XDECREF(before);
    }
    if (!loaded)
        loaded = PyObject_CallFunctionObjArgs(tasks->loads, data, NULL);
    PyObject *args, *kwargs;
    if (loaded && PyTuple_Check(loaded) && PyArg_ParseTuple(loaded, "O!O!", &PyTuple_Type, &args, &PyDict_Type, &kwargs)) {
        attempt->slot = slot;
        attempt->running = header->b;
        PyObject *value = tasks_called(tasks, call, args, kwargs);
        attempt->running = 0;
        if (value && attempt->stack && attempt->stack != Py_None) {
            Py_CLEAR(value); /* whatever it made of the interrupt; `of_failure` asks for that first */
            PyErr_SetString(PyExc_RuntimeError, "an interrupt was caught");
        }
        told = value ? end_of_value(tasks, &end, value) : end_told(&end, tasks->of_failure, exception_taken());
    }
    else {
        if (loaded && !PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a call is a tuple of arguments and a dict of keyword arguments");
        told = end_told(&end, tasks->of_unread, exception_taken());
    }
    Py_XDECREF(loaded);
    attempt->number = 0;
    told = told && tasks_answered(tasks, &end, started, header->b, slot);
    Py_XDECREF(end.data);
    return told;
}

static PyObject *tasks_until_another(tasks_object *tasks)
{
    ring_object *inbound = tasks->inbound;
    mpw_ring *ring = &inbound->ring;
    mpw_record record;
    while (!tasks->attempt->orphans && !tasks->attempt->held_back) {
        if (!ring_usable((PyObject *)inbound))
            return NULL;
        mpw_ring before = *ring;
        mpw_status status = mpw_ring_next(ring, &record);
        if (status == MPW_EMPTY)
            break;
        if (status != MPW_OK)
            return ring_condemn((PyObject *)inbound);
        uint64_t slot = record.header.c & 0xFF, generation = record.header.b;
        PyObject *call = tasks_function(tasks, &record.header);
        bool ours = call && slot < (uint64_t)tasks->claims->slots && generation <= MPW_GENERATION_MAX;
        /* What is not run here goes out as a tuple; what is is read, or kept to be read by Python once it is claimed. */
        PyObject *loaded = ours ? plain_loaded(record.payload, record.header.size) : NULL, *data = NULL;
        if (!loaded && !PyErr_Occurred()) {
            if (ours)
                data = PyBytes_FromStringAndSize((const char *)record.payload, (Py_ssize_t)record.header.size);
            else if ((data = PyTuple_New(6)) && !fill_tuple(data, &record))
                Py_CLEAR(data);
        }
        if (!loaded && !data) {
            Py_XDECREF(call);
            *ring = before; /* out of memory: the record stays in the ring */
            return NULL;
        }
        tasks->record_bytes = mpw_record_bytes(record.header.size);
        mpw_ring_release(ring);
        PyObject *rung = bell_ring_room((PyObject *)tasks->peer_bell, NULL);
        bool done = rung != NULL;
        Py_XDECREF(rung);
        if (!ours) {
            Py_XDECREF(call);
            return done ? data : (Py_DECREF(data), NULL);
        }
        uint64_t started = mpw_now_ns();
        if (done && mpw_claim_take(&tasks->claims->page->slots[slot], generation, started))
            done = tasks_do(tasks, &record.header, call, loaded, data, started); /* else it was revoked */
        else
            Py_XDECREF(loaded);
        Py_XDECREF(data);
        Py_DECREF(call);
        if (!done)
            return NULL;
    }
    return none();
}

static PyObject *tasks_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    tasks_object *tasks = (tasks_object *)self;
    PyObject *found = tasks_until_another(tasks);
    if (found && tasks->owes_ring && !tasks_ring(tasks, mpw_now_ns()))
        Py_CLEAR(found);
    return found; /* else this process cannot go on, and its end is told by itself, or it goes on here at once */
}

static PyMethodDef tasks_methods[] = {
    {"run", tasks_run, METH_NOARGS,
     "run() -> record or None\n\nRun the tasks that have come, up to the first record that is not for here: that. None when "
     "none is left, or something that came before is to be done first: `held_back`, also of a task that has run here."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tasks_slots[] = {
    {Py_tp_doc, "Tasks(claims, attempt, inbound, outbound, peer_bell, received, loads, of_value, of_failure, of_unread, "
                "push, plain_max, puts_off)\n\nRuns the tasks of a child: see tasks.h."},
    {Py_tp_new, tasks_new},
    {Py_tp_dealloc, tasks_dealloc},
    {Py_tp_methods, tasks_methods},
    {0, NULL},
};

static PyType_Spec tasks_spec = {"mpworker.ipc._native.Tasks", sizeof(tasks_object), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, tasks_slots};
