SET check_function_bodies = false;
CREATE FUNCTION public.kie_next_position() RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT pg_advisory_xact_lock(1802069343);
    SELECT pg_notify('kie_journal', '');
    SELECT nextval('kie_position');
$$;
CREATE TABLE public.kie_attempt (
    token text NOT NULL,
    key text NOT NULL,
    number integer NOT NULL,
    task_id text,
    process_id text NOT NULL,
    intended_at double precision NOT NULL,
    checksum bigint NOT NULL
);
CREATE TABLE public.kie_callback (
    "position" bigint DEFAULT public.kie_next_position() NOT NULL,
    token text NOT NULL,
    task_id text NOT NULL,
    stage text NOT NULL,
    received_at double precision NOT NULL,
    checksum bigint NOT NULL
);
CREATE TABLE public.kie_job (
    "position" bigint DEFAULT public.kie_next_position() NOT NULL,
    key text NOT NULL,
    batch text NOT NULL,
    state text NOT NULL,
    cost double precision NOT NULL,
    changed_at double precision NOT NULL,
    document text NOT NULL,
    checksum bigint NOT NULL,
    written text NOT NULL
);
CREATE TABLE public.kie_lease (
    name text NOT NULL,
    process_id text NOT NULL,
    expires_at double precision NOT NULL
);
CREATE SEQUENCE public.kie_position
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE public.kie_quota (
    account text NOT NULL,
    document text NOT NULL,
    written text NOT NULL
);
CREATE TABLE public.kie_schema (
    version integer NOT NULL
);
CREATE TABLE public.kie_upload (
    sha256 text NOT NULL,
    uploaded_at double precision NOT NULL,
    document text NOT NULL,
    checksum bigint NOT NULL
);
INSERT INTO public.kie_attempt VALUES ('token-intent', 'intent', 1, NULL, 'worker-1.example.0:5700:d7ff9aba', 1795680429.167287, 3833616139);
INSERT INTO public.kie_attempt VALUES ('token-submitted', 'submitted', 1, 'task-submitted', 'worker-1.example.0:5700:d7ff9aba', 1795680429.169443, 12573798);
INSERT INTO public.kie_attempt VALUES ('token-succeeded', 'succeeded', 1, 'task-succeeded', 'worker-1.example.0:5700:d7ff9aba', 1795680429.17158, 901940145);
INSERT INTO public.kie_attempt VALUES ('token-delivered', 'delivered', 1, 'task-delivered', 'worker-1.example.0:5700:d7ff9aba', 1795680429.17406, 2239035978);
INSERT INTO public.kie_attempt VALUES ('token-rejected', 'rejected', 1, NULL, 'worker-1.example.0:5700:d7ff9aba', 1795680429.177133, 1270494503);
INSERT INTO public.kie_attempt VALUES ('token-failed', 'failed', 1, 'task-failed', 'worker-1.example.0:5700:d7ff9aba', 1795680429.178715, 3633038440);
INSERT INTO public.kie_attempt VALUES ('token-unknown', 'unknown', 1, NULL, 'worker-1.example.0:5700:d7ff9aba', 1795680429.18106, 1122830063);
INSERT INTO public.kie_attempt VALUES ('token-abandoned', 'abandoned', 1, NULL, 'worker-1.example.0:5700:d7ff9aba', 1795680429.182675, 699595190);
INSERT INTO public.kie_attempt VALUES ('token-again', 'again', 1, 'task-again', 'worker-1.example.0:5700:d7ff9aba', 1795680429.188044, 2730650176);
INSERT INTO public.kie_attempt VALUES ('token-again-2', 'again', 2, 'task-again-2', 'worker-1.example.0:5700:d7ff9aba', 1795680429.190663, 1532506790);
INSERT INTO public.kie_attempt VALUES ('token-refunded', 'refunded', 1, 'task-refunded', 'worker-1.example.0:5700:d7ff9aba', 1795680429.196221, 2742951855);
INSERT INTO public.kie_callback VALUES (12, 'token-again-2', 'task-again-2', 'text', 1.5, 3466982746);
INSERT INTO public.kie_callback VALUES (13, 'token-again-2', 'task-again-2', 'first', 2.5, 2615307962);
INSERT INTO public.kie_callback VALUES (14, 'token-unknown', 'task-unknown', 'text', 1.5, 1856707095);
INSERT INTO public.kie_job VALUES (1, 'planned', 'songs', 'planned', 0, 1795680429.163226, '{"key":"planned","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","moments":{"planned":1795680429.163226}}', 2523503785, 'f06a6ca510be46d28ec5e6c491bdd21d');
INSERT INTO public.kie_job VALUES (2, 'intent', 'songs', 'intent', 12, 1795680429.167287, '{"key":"intent","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"intent","attempt":1,"moments":{"planned":1795680429.166394,"intent":1795680429.167287},"token":"token-intent","process_id":"worker-1.example.0:5700:d7ff9aba"}', 2241379558, '191af8be9e0848d68faad037f293384c');
INSERT INTO public.kie_job VALUES (3, 'submitted', '', 'submitted', 12, 1795680429.170319, '{"key":"submitted","request":{"audio_id":"track-1","model":"V5"},"state":"submitted","attempt":1,"moments":{"planned":1795680429.1688602,"intent":1795680429.169443,"submitted":1795680429.170319},"token":"token-submitted","task_id":"task-submitted","process_id":"worker-1.example.0:5700:d7ff9aba"}', 1152354782, 'cda7826fc90142408f425b1b252d48eb');
INSERT INTO public.kie_job VALUES (4, 'succeeded', 'songs', 'succeeded', 12, 1795680429.173061, '{"key":"succeeded","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"succeeded","attempt":1,"moments":{"planned":1795680429.1710615,"intent":1795680429.17158,"submitted":1795680429.172347,"succeeded":1795680429.173061},"token":"token-succeeded","task_id":"task-succeeded","process_id":"worker-1.example.0:5700:d7ff9aba"}', 3166411797, '08838c31699d400d9077fbb2e6bb9eec');
INSERT INTO public.kie_job VALUES (5, 'delivered', 'songs', 'delivered', 12, 1795680429.176193, '{"key":"delivered","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"delivered","attempt":1,"moments":{"planned":1795680429.173578,"intent":1795680429.17406,"submitted":1795680429.174769,"succeeded":1795680429.175542,"delivered":1795680429.176193},"token":"token-delivered","task_id":"task-delivered","process_id":"worker-1.example.0:5700:d7ff9aba"}', 1222318036, '9804dd6306d44ad18308344905e5c5d4');
INSERT INTO public.kie_job VALUES (6, 'rejected', 'songs', 'rejected', 0, 1795680429.17782, '{"key":"rejected","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"rejected","attempt":1,"moments":{"planned":1795680429.176705,"intent":1795680429.177133,"rejected":1795680429.17782},"token":"token-rejected","process_id":"worker-1.example.0:5700:d7ff9aba"}', 2608687594, '30eddc329d314136b36e29c7c8055e14');
INSERT INTO public.kie_job VALUES (7, 'failed', 'songs', 'failed', 12, 1795680429.180133, '{"key":"failed","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"failed","attempt":1,"moments":{"planned":1795680429.1783097,"intent":1795680429.178715,"submitted":1795680429.179421,"failed":1795680429.180133},"token":"token-failed","task_id":"task-failed","process_id":"worker-1.example.0:5700:d7ff9aba"}', 3066074322, 'b950d8db163e4a7abbf6bb9187044174');
INSERT INTO public.kie_job VALUES (8, 'unknown', 'songs', 'unknown', 12, 1795680429.181744, '{"key":"unknown","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"unknown","attempt":1,"moments":{"planned":1795680429.180632,"intent":1795680429.18106,"unknown":1795680429.181744},"token":"token-unknown","process_id":"worker-1.example.0:5700:d7ff9aba"}', 3338689932, 'cb422a971483426c9aba6de4c810a99a');
INSERT INTO public.kie_job VALUES (9, 'abandoned', 'songs', 'abandoned', 12, 1795680429.184069, '{"key":"abandoned","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"abandoned","attempt":1,"moments":{"planned":1795680429.1822479,"intent":1795680429.182675,"unknown":1795680429.183396,"abandoned":1795680429.184069},"token":"token-abandoned","process_id":"worker-1.example.0:5700:d7ff9aba"}', 2536274761, '5c86bfc4efab4a5dabb1d01b5677688d');
INSERT INTO public.kie_job VALUES (10, 'schlüssel 🎵', 'songs', 'planned', 0, 1795680429.1845856, '{"key":"schlüssel 🎵","request":{"source":"a song.mp3","prompt":"x\ny","style":"Jazz, ä 🎵","title":"T","continue_at":45.5},"batch":"songs","source":{"path":"a song.mp3","size":7,"sha256":"abababababababababababababababababababababababababababababababab","duration":61.5,"upload_url":"https://x.example/1?sig=ü","uploaded_at":1000.5},"moments":{"planned":1795680429.1845856}}', 3636111036, 'e767abcfdc6c4cd5906c3726020085ee');
INSERT INTO public.kie_job VALUES (11, 'again', 'songs', 'delivered', 23.5, 1795680429.194975, '{"key":"again","request":{"audio_id":"track-1","model":"V5"},"batch":"songs","state":"delivered","attempt":2,"earlier_credits":12.0,"moments":{"planned":1795680429.190084,"intent":1795680429.190663,"submitted":1795680429.192328,"failed":1795680429.18948,"succeeded":1795680429.193636,"delivered":1795680429.194975},"token":"token-again-2","task_id":"task-again-2","process_id":"worker-1.example.0:5700:d7ff9aba","route":"classic","credits":11.5,"tracks":[{"id":"id","audio_url":"https://x.example/a.mp3","title":"Ü","duration":60.5,"created_at":"2026-01-02T00:00:00+00:00"},{"id":"id-2"}],"partial":true,"files":["x/y.mp3","z.mp3"]}', 2810292315, '6fb7cc4cdae646a5a8ad12fb29663c24');
INSERT INTO public.kie_job VALUES (15, 'refunded', '', 'failed', 0, 1795680429.197243, '{"key":"refunded","request":{"audio_id":"track-1","model":"V5"},"state":"failed","attempt":1,"error":{"type":"TaskFailedError","message":"ä","code":531,"retryable":true,"refunded":true},"moments":{"planned":1795680429.1959097,"intent":1795680429.196221,"submitted":1795680429.196739,"failed":1795680429.197243},"token":"token-refunded","task_id":"task-refunded","process_id":"worker-1.example.0:5700:d7ff9aba"}', 764465064, 'bd9656afbb1c451184890317d5d0a0b4');
INSERT INTO public.kie_lease VALUES ('batch:songs', 'worker-1.example.0:5700:d7ff9aba', 1795684029.198435);
INSERT INTO public.kie_quota VALUES ('an-account', '{"tick":1795680429.199729,"slots":[{"free_at":1795680439.219729},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}', 'b8129053e7ad443b8b40c70a5c20dfa3');
INSERT INTO public.kie_schema VALUES (2);
INSERT INTO public.kie_upload VALUES ('abababababababababababababababababababababababababababababababab', 1000.5, '{"path":"a song.mp3","size":7,"sha256":"abababababababababababababababababababababababababababababababab","duration":61.5,"upload_url":"https://x.example/1?sig=ü","uploaded_at":1000.5}', 2156604873);
SELECT pg_catalog.setval('public.kie_position', 15, true);
ALTER TABLE ONLY public.kie_attempt
    ADD CONSTRAINT kie_attempt_key_number_key UNIQUE (key, number);
ALTER TABLE ONLY public.kie_attempt
    ADD CONSTRAINT kie_attempt_pkey PRIMARY KEY (token);
ALTER TABLE ONLY public.kie_attempt
    ADD CONSTRAINT kie_attempt_task_id_key UNIQUE (task_id);
ALTER TABLE ONLY public.kie_callback
    ADD CONSTRAINT kie_callback_pkey PRIMARY KEY ("position");
ALTER TABLE ONLY public.kie_callback
    ADD CONSTRAINT kie_callback_token_task_id_stage_key UNIQUE (token, task_id, stage);
ALTER TABLE ONLY public.kie_job
    ADD CONSTRAINT kie_job_key_key UNIQUE (key);
ALTER TABLE ONLY public.kie_job
    ADD CONSTRAINT kie_job_pkey PRIMARY KEY ("position");
ALTER TABLE ONLY public.kie_lease
    ADD CONSTRAINT kie_lease_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.kie_quota
    ADD CONSTRAINT kie_quota_pkey PRIMARY KEY (account);
ALTER TABLE ONLY public.kie_upload
    ADD CONSTRAINT kie_upload_pkey PRIMARY KEY (sha256);
CREATE INDEX kie_callback_task ON public.kie_callback USING btree (task_id);
CREATE INDEX kie_job_batch ON public.kie_job USING btree (batch, state, "position", cost);
CREATE INDEX kie_job_state ON public.kie_job USING btree (state, "position");
